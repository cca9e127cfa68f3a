"""What the simulator does wrong, and how fast its device is."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Fault(enum.Enum):
    """What can happen to one request for embeddings or for `/info`."""

    OK = "ok"
    REJECT = "reject"  # 429, as TEI says it
    BACKEND = "backend"  # 424
    THROTTLE = "throttle"  # 429 of a gateway
    BAD_GATEWAY = "bad_gateway"  # 502
    UNAVAILABLE = "unavailable"  # 503
    GATEWAY_TIMEOUT = "gateway_timeout"  # 504
    UNAUTHORIZED = "unauthorized"  # 401
    FORBIDDEN = "forbidden"  # 403
    NOT_FOUND = "not_found"  # 404
    PAUSED = "paused"  # 400 of a paused endpoint
    REDIRECT = "redirect"  # 307
    RESET = "reset"  # RST before a reply
    CUT = "cut"  # RST in the middle of the reply
    END_EARLY = "end_early"  # FIN in the middle of the reply
    HANG = "hang"  # no reply ever
    SHORT_REPLY = "short_reply"  # the last row is missing
    WRONG_DIMENSIONS = "wrong_dimensions"  # the last component of each row is missing
    PERMUTED = "permuted"  # each row in another's place
    SHUFFLED = "shuffled"  # the rows in any order
    SWAPPED = "swapped"  # two rows have changed places
    DRIP = "drip"  # the reply a few bytes at a time, for ever
    CRASH = "crash"  # all connections reset, new ones refused for a while


@dataclass(frozen=True, slots=True)
class Faults:
    """The simulator's settings; the defaults are a device that is instant and never fails.

    A request's fault is the next of `script`; once that is used up, it is drawn from the chances. All chances but
    `backend` and `null_rows` are of one request. What can only happen to vectors leaves `/info` as it is.

    Attributes:
        embed: whether requests for embeddings have faults.
        info: whether requests for `/info` do.
        script: faults of the first requests, in the order in which these arrive.
        seed: of what is drawn.
        reject: chance of 429 as TEI says it.
        backend: chance that a device batch fails, and with it (424) all requests that have a text in it.
        throttle: chance of 429 as a gateway says it.
        bad_gateway: chance of 502, with HTML.
        unavailable: chance of 503, with HTML.
        gateway_timeout: chance of 504, with HTML.
        reset: chance of RST before a reply.
        cut: chance of RST in the middle of the reply.
        end_early: chance of FIN in the middle of the reply.
        hang: chance of no reply.
        short_reply: chance that the last row is missing.
        wrong_dimensions: chance that rows lack a component.
        permuted: chance that no row is in its place.
        shuffled: chance that the rows are in any order.
        swapped: chance that two rows have changed places.
        drip: chance of a reply that never gets whole, though bytes keep coming.
        null_rows: chance that one text's row has a null.
        null_marker: texts with this in them always have a row of nulls.
        scales: factors by a marker: texts with it in them have vectors of so many times the norm.
        refuse_marker: a request with such a text is answered with 422.
        poison_marker: a device batch with such a text fails, and with it (424) all requests that have a text in it.
        retry_after: seconds told in `Retry-After` by a gateway's 429 and 503; None for no such header.
        paused: whether every request is answered as a paused endpoint does.
        redirect: where every request is redirected to; None for no redirection.
        crash_seconds: how long connections are refused after a crash.
        wake_seconds: how long an endpoint that is scaled to zero takes to start, from its first request of any kind on;
            until then requests get 503, but for those that wait for it as long as their `X-Scale-Up-Timeout` says.
        model_seed: which model replies; another one has another sha and other vectors.
        same_name: whether the sha stays as it is for seed 0, whichever model replies.
        info_fields: fields of `/info` with other values; a null leaves the field out.
        mix: share of replies for embeddings, once `script` is used up, that come from `other_seed`'s model under the
            same name.
        swap_at: after how many texts, counted from when this was set, all replies come from `other_seed`'s model under
            the same name; 0 for at once, None for never.
        other_seed: the model of `mix` and `swap_at`.
        default_prompt: a prompt that the server puts before every text that comes without the name of one.
        noise: "float16" for vectors rounded to it; "quantized" for noise that depends on the whole batch, cosine 0.995.
        cache: "body" for a caching proxy in front, keyed by the request's body; "first_text" for one keyed by its first
            text alone; None for none.
        token_file: a file with the bearer token that requests must carry; it is read at every request.
        expire_after: after how many requests a token from `token_file` is refused with 401, until the file has another.
        required_header: "name: value" that requests must carry, or they get 401.
        no_info: whether `/info` is a 404.
        openai_only: whether there are only `/v1/models` and `/v1/embeddings`, and no `x-` headers.
        time_headers: "true", "zero" where a gateway sets the queue and inference times to 0, "none" where it strips all
            `x-` headers.
        latency_seconds: the time on the network of every request and its reply, half before and half after.
        texts_per_second: how many texts the device computes; None for no limit. Seconds of a batch add up.
        batch_seconds: how long the device takes for a batch of any size; new faults end the batch that is on it.
        tokens_per_second: how many tokens it reads; None for no limit.
    """

    embed: bool = True
    info: bool = False
    script: tuple[Fault, ...] = ()
    seed: int = 0
    reject: float = 0.0
    backend: float = 0.0
    throttle: float = 0.0
    bad_gateway: float = 0.0
    unavailable: float = 0.0
    gateway_timeout: float = 0.0
    reset: float = 0.0
    cut: float = 0.0
    end_early: float = 0.0
    hang: float = 0.0
    short_reply: float = 0.0
    wrong_dimensions: float = 0.0
    permuted: float = 0.0
    shuffled: float = 0.0
    swapped: float = 0.0
    drip: float = 0.0
    null_rows: float = 0.0
    null_marker: str | None = None
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    refuse_marker: str | None = None
    poison_marker: str | None = None
    retry_after: float | None = None
    paused: bool = False
    redirect: str | None = None
    crash_seconds: float = 1.0
    wake_seconds: float = 0.0
    model_seed: int = 0
    same_name: bool = False
    info_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mix: float = 0.0
    swap_at: int | None = None
    other_seed: int = 1_000_003
    default_prompt: str | None = None
    noise: str | None = None
    cache: str | None = None
    token_file: str | None = None
    expire_after: int | None = None
    required_header: str | None = None
    no_info: bool = False
    openai_only: bool = False
    time_headers: str = "true"
    latency_seconds: float = 0.0
    texts_per_second: float | None = None
    batch_seconds: float = 0.0
    tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        """Checks the chances.

        Raises:
            ValueError: naming the one that is none.
        """
        chances = {fault.value: chance for fault, chance in self.chances().items()}
        for name, chance in {**chances, "backend": self.backend, "null_rows": self.null_rows, "mix": self.mix}.items():
            if not 0 <= chance <= 1:
                raise ValueError(f"{name} is {chance}: it must be a chance between 0 and 1")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be one of {choices}")

    @classmethod
    def from_json(cls, text: str | bytes) -> Faults:
        """Reads `{"reject": 0.1, "script": ["reset", "ok"], …}`.

        Raises:
            ValueError: if it is no such object, or a name is unknown.
        """
        values: Any = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"faults are a JSON object, not {text!r}")  # noqa: TRY004 - callers catch one type
        return cls().changed(values)

    def changed(self, changes: Mapping[str, Any]) -> Faults:
        """Return these faults with some values changed; those in `changes` are as in JSON.

        Raises:
            ValueError: if a name is unknown.
        """
        unknown = set(changes) - {field.name for field in dataclasses.fields(self)}
        if unknown:
            raise ValueError(f"no such faults: {', '.join(sorted(unknown))}")
        changes = {**changes, "script": tuple(map(Fault, changes.get("script", self.script)))}
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Writes what `from_json` reads."""
        values = {**dataclasses.asdict(self), "script": [fault.value for fault in self.script]}
        return json.dumps(values)

    def chances(self) -> Mapping[Fault, float]:
        """The chances of a request."""
        return {fault: getattr(self, fault.value) for fault in _DRAWN}


_CHOICES = {
    "noise": (None, "float16", "quantized"),
    "cache": (None, "body", "first_text"),
    "time_headers": ("true", "zero", "none"),
}
_DRAWN = (
    Fault.REJECT,
    Fault.THROTTLE,
    Fault.BAD_GATEWAY,
    Fault.UNAVAILABLE,
    Fault.GATEWAY_TIMEOUT,
    Fault.RESET,
    Fault.CUT,
    Fault.END_EARLY,
    Fault.HANG,
    Fault.SHORT_REPLY,
    Fault.WRONG_DIMENSIONS,
    Fault.PERMUTED,
    Fault.SHUFFLED,
    Fault.SWAPPED,
    Fault.DRIP,
)
