"""TeiTextEmbeddings: Beam's own interface to embeddings, MLTransform, over this client."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler
from apache_beam.ml.rag.embeddings.base import create_text_adapter
from apache_beam.ml.rag.types import EmbeddableItem, Embedding
from apache_beam.ml.transforms.base import EmbeddingsManager

from transforms.elements import Vectors
from transforms.embed_texts import EmbedOrReject, VectorsOrRejection
from transforms.tei.settings import EndpointSettings
from transforms.tei.tasks import Rejection


class NotEmbedded(ValueError):
    """A record has no vector; the message is the reason of `transforms.elements.Reason`, and its detail."""


class TeiTextEmbeddings(EmbeddingsManager):  # type: ignore[misc] # Beam ships no types
    """Text embeddings of a TEI endpoint, for `MLTransform(…).with_transform(…)` and `apache_beam.ml.rag`.

    With `columns`, records are dicts or `beam.Row`s, and the vector of a column's text takes the text's place. Without,
    they are `EmbeddableItem`s, also called `Chunk`s, and their `embedding` is set. A vector is a list of floats, which
    are exactly the endpoint's 32-bit ones. Records are copied, not changed.

    With `MLTransform.with_exception_handling()`, the second output has each record that cannot be embedded, and no
    other one: its `element` is the record, its `msg` is like `NotEmbedded('overlong_text: …')`. Without, such a record
    fails the pipeline. `EmbedTexts` documents what else does, and how all workers keep to one vector space.

    The artifact location keeps the settings: the token's name but never the token, and the vector space if it was
    given. A pipeline that reads them then refuses an endpoint whose vectors are of another space.

    Args:
        endpoint: the URL, or several of one model.
        columns: those that hold texts; None for EmbeddableItems.
        token: a reference to the bearer token (`env:NAME`, `file:PATH`, `gsm:projects/…`); None for none.
        settings: other fields of `EndpointSettings`: `space`, `overlong`, `prompt_name`, `max_in_flight`, …

    Raises:
        ValueError: a URL, a reference or a setting cannot be used.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        token: str | None = None,
        **settings: Any,
    ) -> None:
        if columns is None:
            super().__init__(type_adapter=create_text_adapter())
        elif isinstance(columns, str) or not columns:
            raise ValueError(f"columns is {columns!r}; it must be a list of names, or None for EmbeddableItems")
        else:
            super().__init__(columns=list(columns))
        urls = (endpoint,) if isinstance(endpoint, str) else tuple(endpoint)
        self.settings = {"urls": urls, "token": token, **settings}
        EndpointSettings(**self.settings)  # refuses what cannot be used

    def get_model_handler(self) -> ModelHandler:
        """Refuse: RunInference would put a whole batch among the errors for one text in it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("TeiTextEmbeddings has no model handler; use it with MLTransform")

    def get_ptransform_for_processing(self, **_kwargs: Any) -> beam.PTransform:
        """Return what MLTransform applies to the records."""
        return EmbedRecords(self.settings, None if self.columns is None else tuple(self.columns))


@dataclass
class EmbedRecords(beam.PTransform):  # type: ignore[misc]
    """Records in; records with vectors out and, with exception handling, the others beside their errors.

    MLTransform writes this object to the artifact location, so its attributes are what later versions must understand.

    Attributes:
        settings: of `EndpointSettings`, by name.
        columns: those that hold texts; None for EmbeddableItems.
        exception_handling: the arguments of `beam.Map(…).with_exception_handling`; None for no exception handling.
    """

    settings: Mapping[str, Any]
    columns: tuple[str, ...] | None
    exception_handling: Mapping[str, Any] | None = None

    def default_label(self) -> str:
        """Return a label that differs where one MLTransform has several of these."""
        return f"EmbedRecords({', '.join(self.columns)})" if self.columns else "EmbedRecords"

    def with_exception_handling(self, **options: Any) -> EmbedRecords:
        """Return the transform with a second output, of pairs of a record and its error.

        Args:
            options: those of `beam.ParDo.with_exception_handling`: `exc_class`, `threshold`, …
        """
        return dataclasses.replace(self, exception_handling=options)

    def expand(self, records: beam.PCollection) -> beam.PCollection | tuple[beam.PCollection, beam.PCollection]:
        """Wire it."""
        outcomes = (
            records
            | "TakeTexts" >> beam.Map(take_texts, self.columns)
            | "EmbedOrReject" >> EmbedOrReject(EndpointSettings(**self.settings))
        )
        put_vectors = beam.Map(with_vectors)
        if self.columns is None:
            put_vectors = put_vectors.with_output_types(EmbeddableItem)
        if self.exception_handling is None:
            return outcomes | "PutVectors" >> put_vectors
        # Rejections are raised here, one record at a time. So Beam's exception handling, with its choice of classes and
        # its threshold, is about records, where that of RunInference is about batches.
        embedded, failed = outcomes | "PutVectors" >> put_vectors.with_exception_handling(**self.exception_handling)
        return embedded, failed | "TakeRecords" >> beam.MapTuple(_take_record)


def _take_record(outcome: tuple[Any, VectorsOrRejection], error: Any) -> tuple[Any, Any]:
    return outcome[0], error


def take_texts(record: Any, columns: Sequence[str] | None) -> tuple[Any, Any]:
    """Return a record and its texts: those of its columns by name, or that of an EmbeddableItem; None for one it lacks.

    Raises:
        TypeError: there are no columns, and it is not an EmbeddableItem.
    """
    if columns is None:
        if not isinstance(record, EmbeddableItem):
            raise TypeError(f"without columns, a record must be an EmbeddableItem, not of type {type(record).__name__}")
        return record, record.content.text
    if isinstance(record, Mapping):
        return record, {column: record.get(column) for column in columns}
    return record, {column: getattr(record, column, None) for column in columns}


def with_vectors(outcome: tuple[Any, VectorsOrRejection]) -> Any:
    """Return a copy of a record with its vectors.

    Args:
        outcome: a record and its vector, its vectors by column, or its rejection.

    Raises:
        NotEmbedded: it was rejected.
        TypeError: it has columns, but is neither a dict nor a Row.
    """
    record, value = outcome
    if isinstance(value, Rejection):
        raise NotEmbedded(f"{value.reason.value}: {value.detail}")
    if not isinstance(value, Mapping):
        dense: Vectors = value
        former = record.embedding or Embedding()
        return dataclasses.replace(record, embedding=dataclasses.replace(former, dense_embedding=dense.tolist()))
    lists = {column: vector.tolist() for column, vector in value.items()}
    if isinstance(record, Mapping):
        return {**record, **lists}
    if hasattr(record, "_asdict"):
        return beam.Row(**{**record._asdict(), **lists})
    raise TypeError(f"with columns, a record must be a dict or a Row, not of type {type(record).__name__}")
