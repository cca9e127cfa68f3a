from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pipeline.reporting
from pipeline.job.ledger import Ledger
from pipeline.job.sharding import Plan
from pipeline.reporting.report import make_report
from pipeline.reporting.schema import Report, encode_json, json_schema
from tests.pipeline.job.test_spec import JOB
from tests.pipeline.reporting.reports import nasty_report, unfinished_report

SHIPPED = Path(pipeline.reporting.__path__[0]) / "report.schema.json"


def test_the_schema_that_is_shipped_is_that_of_the_types() -> None:
    assert SHIPPED.read_bytes() == encode_json(json_schema()), (
        "python -m pipeline.reporting.schema > pipeline/reporting/report.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_every_field_is_described() -> None:
    def objects(schema: Any) -> Any:
        if isinstance(schema, dict) and "properties" in schema:
            yield schema
        for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
            yield from objects(value)

    found = list(objects(json_schema()))
    assert len(found) > 12
    for one in found:
        assert all(field["description"] for field in one["properties"].values())


@pytest.mark.parametrize(
    "report",
    [
        nasty_report(),
        unfinished_report(),
        make_report(Ledger(Plan((), 100), ()), dataclasses.replace(JOB, text_field=("title", "body")), "/out", None),
    ],
)
def test_reports_keep_to_the_schema(report: Report) -> None:
    value = json.loads(encode_json(report))
    jsonschema.validate(value, json_schema())
    for field in dataclasses.fields(Report):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({name: one for name, one in value.items() if name != field.name}, json_schema())
    for wrong in ({"surplus": 1}, {"version": 1}, {"totals": value["totals"] | {"tokens": -1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value | wrong, json_schema())
