"""Traces: everything of one episode in a folder, to be looked at, sent to somebody, and played again.

What enters: a finished `Trajectory` with the question and the loop that made it. What leaves: a folder, and from a folder, however hostile, a
`SavedEpisode`.

    TRACE/trace.json         schema `mmreason.trace/1`: question, options, turns, events, tokens, pictures
    TRACE/images/<sha>.png   every picture once: those of the question as they came, those of tools with their marks drawn

A picture's name is the digest of its pixels, and is checked when it is read: a trace names no path. Nothing in a trace is run or
loaded because the trace says so: tools of one's own, and models other than the embedded one, are named by the person who plays it again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, model_validator

from mmreason.agent.affine import Affine
from mmreason.agent.calls import Call
from mmreason.agent.episode import Event, EventKind, Stop
from mmreason.agent.images import MarkKind, Picture
from mmreason.agent.rendering import render
from mmreason.config.agent_section import AgentConfig
from mmreason.config.schema import ModelConfig
from mmreason.errors import DataError, ImageError
from mmreason.images import ImageLoader
from mmreason.records import Row
from mmreason.run_records import pixel_digest, save_picture, to_plain, write_atomically

if TYPE_CHECKING:
    from mmreason.agent.loop import AgentLoop, Trajectory
    from mmreason.policy.policy import Prepared

SCHEMA = "mmreason.trace/1"
FILE_NAME = "trace.json"
#: Of the JSON file, in bytes; of one picture and of all, in pixels; how many pictures.
MAX_FILE_BYTES = 32_000_000
MAX_PICTURE_PX, MAX_TOTAL_PX = 40_000_000, 200_000_000
MAX_PICTURES, MAX_TOKENS = 512, 1_000_000

Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
ImageId = Annotated[str, StringConstraints(pattern="^img_(0|[1-9][0-9]{0,3})$")]
Side = Annotated[int, Field(ge=1, le=MAX_PICTURE_PX)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
_PACKAGES = ("mmreason", "torch", "transformers", "pillow", "opencv-python-headless")


class _Saved(BaseModel):
    """Base of all parts: immutable, unknown keys and wrong types refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class SavedMark(_Saved):
    """Something drawn on a picture (`mmreason.agent.images.Mark`); points in pixels of the picture."""

    label: str
    kind: MarkKind
    points: tuple[tuple[float, float], ...]
    text: str = ""


class SavedPicture(_Saved):
    """One picture of the episode (`mmreason.agent.images.Picture`).

    Attributes:
        to_root: the six numbers of `Affine`.
        size: `(width, height)` in pixels.
        digest: of its pixels with its marks drawn; the name of its file.
    """

    id: ImageId
    root: ImageId
    parent: ImageId | None = None
    to_root: tuple[float, float, float, float, float, float]
    marks: tuple[SavedMark, ...] = ()
    made_by: str = ""
    name: str = ""
    size: tuple[Side, Side]
    digest: Digest

    @classmethod
    def of(cls, picture: Picture, digest: str) -> SavedPicture:
        """A picture, and the digest of its pixels with marks."""
        marks = tuple(
            SavedMark(label=label, kind=mark.kind, points=mark.points, text=mark.text)
            for label, mark in picture.marks.items()
        )
        a = picture.to_root
        return cls(
            id=picture.id,
            root=picture.root,
            parent=picture.parent,
            to_root=(a.a, a.b, a.c, a.d, a.e, a.f),
            marks=marks,
            made_by=picture.made_by,
            name=picture.name,
            size=picture.size,
            digest=digest,
        )

    @property
    def affine(self) -> Affine:
        """From its pixels to those of its root."""
        return Affine(*self.to_root)


class SavedCall(_Saved):
    """A call as the model wrote it."""

    tool: str
    arguments: dict[str, JsonValue]


class SavedEvent(_Saved):
    """Something that happened (`mmreason.agent.episode.Event`)."""

    kind: EventKind
    turn: int
    text: str = ""
    call: SavedCall | None = None
    pictures: tuple[ImageId, ...] = ()

    @classmethod
    def of(cls, event: Event) -> SavedEvent:
        """An event."""
        call = None if event.call is None else SavedCall(tool=event.call.tool, arguments=_plain(event.call.arguments))
        return cls(kind=event.kind, turn=event.turn, text=event.text, call=call, pictures=event.pictures)

    @property
    def event(self) -> Event:
        """The event again."""
        call = None if self.call is None else Call(self.call.tool, self.call.arguments)
        return Event(self.kind, self.turn, self.text, call, self.pictures)


class SavedTurn(_Saved):
    """One turn, or one call of several in a turn, as rewards see it (`mmreason.records.Turn`)."""

    text: str
    tool: str | None = None
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    ok: bool = True
    num_images: int = 0
    shown: tuple[str, ...] = ()
    error: str = ""
    piece: tuple[float, float, float, float] | None = None


class SavedPart(BaseModel):
    """A part of a message; what else stands in a part of boxes is checked where it is written out (`mmreason.prompt_boxes`)."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    type: Literal["text", "image", "boxes"]
    text: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> SavedPart:
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type text needs a text")
        return self


class SavedMessage(_Saved):
    """One message of the prompt."""

    role: Literal["system", "user", "assistant"]
    content: str | tuple[SavedPart, ...]

    @property
    def num_images(self) -> int:
        """How many pictures it shows."""
        return 0 if isinstance(self.content, str) else sum(part.type == "image" for part in self.content)


class SavedQuestion(_Saved):
    """The row without its pictures.

    Attributes:
        hidden: pages and frames that tools may bring up: name -> digest.
        columns: its other columns, as far as JSON can hold them.
        left_out: names of those that it cannot.
    """

    id: str
    messages: tuple[SavedMessage, ...]
    target: dict[str, JsonValue] = Field(default_factory=dict)
    dataset: str = ""
    hidden: dict[str, Digest] = Field(default_factory=dict)
    columns: dict[str, JsonValue] = Field(default_factory=dict)
    left_out: tuple[str, ...] = ()


class SavedSampling(_Saved):
    """How the turns were sampled."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


class Trace(_Saved):
    """What `trace.json` holds.

    Attributes:
        made_with: package -> version.
        max_new_tokens: of the whole completion.
        prompt_ids: the prompt as the model read it, pictures expanded.
        ids: tokens after the prompt: turns as sampled, and what the model was shown between them.
        owner: runs of `ids`: `(1, n)` for n tokens that the model sampled, `(0, n)` for n that it was shown.
        turn_ends: how many of `ids` there are at the end of each turn of the model.
        texts: what the model wrote, turn by turn.
        pictures: of the question first, then those of tools in order of appearance.
        rewards: reward -> value, where the answer is known.
    """

    schema_name: Literal["mmreason.trace/1"] = Field("mmreason.trace/1", alias="schema")
    made_with: dict[str, str] = Field(default_factory=dict)
    question: SavedQuestion
    model: ModelConfig
    agent: AgentConfig
    max_new_tokens: Count
    sampling: SavedSampling = SavedSampling()
    prompt_ids: tuple[Token, ...]
    ids: tuple[Token, ...]
    owner: tuple[tuple[Literal[0, 1], Count], ...]
    turn_ends: tuple[Count, ...]
    texts: tuple[str, ...]
    turns: tuple[SavedTurn, ...]
    events: tuple[SavedEvent, ...]
    pictures: tuple[SavedPicture, ...] = Field(max_length=MAX_PICTURES)
    answer: str | None = None
    stop: Stop
    rewards: dict[str, float | None] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Trace:
        if sum(count for _, count in self.owner) != len(self.ids):
            raise ValueError(
                f"owner counts {sum(count for _, count in self.owner)} tokens, and there are {len(self.ids)}"
            )
        ends = (0, *self.turn_ends)
        if len(self.texts) != len(self.turn_ends) or any(b < a for a, b in pairwise(ends)):
            raise ValueError("turn_ends must grow, one for each of texts")
        if self.turn_ends and self.turn_ends[-1] > len(self.ids):
            raise ValueError("turn_ends lie behind the last token")
        known: set[str] = set()
        for index, picture in enumerate(self.pictures):
            if picture.id != f"img_{index}":
                raise ValueError(f"picture {index} must be img_{index}, not {picture.id}")
            if not {picture.parent, picture.root} <= {*known, picture.id, None} or picture.parent == picture.id:
                raise ValueError(f"{picture.id} comes from a picture that is not before it")
            if (picture.made_by == "") != (index < self.num_given):
                raise ValueError(
                    f"{picture.id}: {self.num_given} pictures come with the question, the others from tools"
                )
            known.add(picture.id)
        if self.num_given > len(self.pictures):
            raise ValueError(f"the question shows {self.num_given} pictures, and there are {len(self.pictures)}")
        shown = {one for event in self.events for one in event.pictures}
        if not shown <= known:
            raise ValueError(f"an event shows {min(shown - known)}, which is not among the pictures")
        return self

    def turn_ids(self, turn: int) -> tuple[int, ...]:
        """The tokens that the model sampled in a turn, its end included."""
        end = self.turn_ends[turn]
        start = 0 if turn == 0 else self.turn_ends[turn - 1]
        return tuple(token for token, owner in zip(self.ids[start:end], self.owners()[start:end], strict=True) if owner)

    def owners(self) -> tuple[int, ...]:
        """For each of `ids`, 1 if the model sampled it."""
        return tuple(owner for owner, count in self.owner for _ in range(count))

    @property
    def num_given(self) -> int:
        """How many of the pictures came with the question."""
        return sum(message.num_images for message in self.question.messages)


@dataclass(frozen=True, eq=False)
class SavedEpisode:
    """A trace with its pictures; compared by identity.

    Attributes:
        trace: all but the pixels.
        images: digest -> picture, RGB, marks drawn.
    """

    trace: Trace
    images: Mapping[str, Image.Image]

    def picture(self, image_id: str) -> Image.Image:
        """A picture of the episode by its id."""
        found = next(picture for picture in self.trace.pictures if picture.id == image_id)
        return self.images[found.digest]

    def row(self) -> Row:
        """The question again, with its pictures."""
        question = self.trace.question
        hidden = {name: self.images[digest] for name, digest in question.hidden.items()}
        given = self.trace.pictures[: self.trace.num_given]
        return Row(
            question.id,
            tuple(message.model_dump(exclude_unset=True) for message in question.messages),
            tuple(self.images[picture.digest] for picture in given),
            question.target,
            question.dataset,
            {**question.columns, **({"hidden": hidden} if hidden else {})},
        )


def saved_episode(
    loop: AgentLoop,
    prepared: Prepared,
    trajectory: Trajectory,
    sampling: SavedSampling | None = None,
    rewards: Mapping[str, float | None] | None = None,
) -> SavedEpisode:
    """A finished episode as it is saved.

    Args:
        loop: that played it.
        prepared: the prompt, not yet told of the tools.
        trajectory: the episode.
        sampling: how it was sampled.
        rewards: reward -> value, where the answer is known.
    """
    from mmreason.prompt_once.prompts import PromptStore

    episode, policy, row = trajectory.episode, loop.policy, prepared.row
    store = PromptStore(policy)
    prompt = store.prompts[store.add([loop.prepare(prepared)])[0]]
    images: dict[str, Image.Image] = {}

    def kept(image: Image.Image) -> str:
        digest = pixel_digest(image)
        images[digest] = image
        return digest

    columns, left_out = _json_columns(row.columns)
    hidden = {str(name): kept(image.convert("RGB")) for name, image in episode.store.hidden.items()}
    question = SavedQuestion(
        id=row.id,
        messages=tuple(SavedMessage.model_validate(_plain(message), strict=False) for message in row.messages),
        target=_plain(row.target),
        dataset=row.dataset,
        hidden=hidden,
        columns=columns,
        left_out=left_out,
    )
    trace = Trace(
        schema="mmreason.trace/1",
        made_with=_versions(),
        question=question,
        model=policy.config,
        agent=loop.config,
        max_new_tokens=loop.max_tokens,
        sampling=sampling or SavedSampling(),
        prompt_ids=prompt.ids,
        ids=trajectory.ids,
        owner=tuple((1 if owner else 0, len(list(run))) for owner, run in groupby(trajectory.owner)),
        turn_ends=trajectory.turn_ends,
        texts=tuple(map(_text, trajectory.texts)),
        turns=tuple(SavedTurn.model_validate(_plain(asdict(turn)), strict=False) for turn in episode.turns),
        events=tuple(map(SavedEvent.of, episode.events)),
        pictures=tuple(SavedPicture.of(picture, kept(render(picture))) for picture in episode.store.pictures),
        answer=None if episode.answer is None else _text(episode.answer),
        stop=trajectory.stop,
        rewards=dict(rewards or {}),
    )
    return SavedEpisode(trace, images)


def write_trace(saved: SavedEpisode, folder: str | Path) -> Path:
    """Write a trace as a new folder, in one go; returns its path.

    Raises:
        DataError: there is something at this place already.
    """
    folder = Path(folder)
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder}: there is something already; a trace is a new folder, choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for image in saved.images.values():
            save_picture(image, temporary / "images")
        text = saved.trace.model_dump_json(by_alias=True, indent=1)
        write_atomically(temporary / FILE_NAME, text.encode("utf-8") + b"\n")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read_trace(folder: str | Path) -> SavedEpisode:
    """Read a trace, which may come from anywhere.

    Raises:
        DataError: no such folder, another schema, something of a wrong type or size, a picture that is missing or changed.
    """
    folder = Path(folder)
    path = folder / FILE_NAME
    if not path.is_file():
        raise DataError(f"{path}: no such file. A trace is a folder that `mmreason agent --out FOLDER` wrote.")
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{path}: more than {MAX_FILE_BYTES:,} bytes; is this a trace?")
    try:
        trace = Trace.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{path} is not a trace of schema {SCHEMA}: {_first(error)}") from None
    return SavedEpisode(trace, _read_pictures(folder, trace))


def _read_pictures(folder: Path, trace: Trace) -> dict[str, Image.Image]:
    wanted = [picture.digest for picture in trace.pictures] + list(trace.question.hidden.values())
    wanted = list(dict.fromkeys(wanted))
    if not wanted:
        return {}
    if len(wanted) > 2 * MAX_PICTURES or not (folder / "images").is_dir():
        raise DataError(
            f"{folder}: {len(wanted)} pictures, and no folder images, or more than {2 * MAX_PICTURES} of them"
        )
    limits: dict[str, Any] = {"max_pixels": MAX_PICTURE_PX, "formats": ("PNG",), "min_side_px": 1, "max_aspect": 1e6}
    images: dict[str, Image.Image] = {}
    try:
        loader = ImageLoader(folder / "images", **limits)
        names = {digest: f"{digest}.png" for digest in wanted}
        sizes = {digest: loader.check(name) for digest, name in names.items()}
        total = sum(width * height for width, height in sizes.values())
        if total > MAX_TOTAL_PX:
            raise DataError(f"{folder}: pictures of {total:,} pixels together; a trace may have {MAX_TOTAL_PX:,}")
        images = {digest: loader.open(name) for digest, name in names.items()}
    except ImageError as error:
        raise DataError(f"{folder}: a picture of this trace cannot be read: {error}") from None
    for digest, image in images.items():
        if pixel_digest(image) != digest:
            raise DataError(
                f"{folder}/images/{digest}.png has been changed: its pixels are not those it is named after"
            )
    for picture in trace.pictures:
        if images[picture.digest].size != picture.size:
            raise DataError(
                f"{folder}: {picture.id} is said to be {picture.size}, its file is {images[picture.digest].size}"
            )
    return images


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout, or another build of the same library
            found[name] = "unknown"
    return found


def _json_columns(columns: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of a row's columns JSON can hold, and the names of the rest."""
    kept: dict[str, Any] = {}
    left_out = []
    for name, value in columns.items():
        if name == "hidden":
            continue
        try:
            kept[str(name)] = _plain(value)
        except (TypeError, RecursionError):
            left_out.append(str(name))
    return kept, tuple(left_out)


def _plain(value: Any) -> Any:
    """What JSON can hold, texts without half surrogate pairs."""
    return _well_formed(to_plain(value))


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return {_text(key): _well_formed(item) for key, item in value.items()}
    return [_well_formed(item) for item in value] if isinstance(value, list) else value


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _first(error: ValidationError) -> str:
    # The deepest one: where a value may have several forms, it says the most.
    first = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
    place = ".".join(str(part) for part in first["loc"])
    rest = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place + ': ' if place else ''}{first['msg']}{rest}"
