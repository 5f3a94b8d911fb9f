"""`mmreason doctor`: can this machine train, with what, and what is missing.

What enters: nothing but the machine. What leaves: a table on stdout and an exit code, 0 when training can
run. No network is used. Every finding is a `Check`; a check that fails names the command that repairs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Verdict = Literal["ok", "note", "missing", "bad"]

_MARKS = {
    "ok": "[green]ok[/]",
    "note": "[cyan]note[/]",
    "missing": "[yellow]missing[/]",
    "bad": "[red]BAD[/]",
}
#: (module, attribute) of every plug-in registry.
REGISTRIES = (
    ("mmreason.scoring", "REWARDS"),
    ("mmreason.scoring", "SHAPERS"),
    ("mmreason.data.base", "TASKS"),
    ("mmreason.objectives.registry", "LOSS_TERMS"),
    ("mmreason.objectives.registry", "ADVANTAGES"),
    ("mmreason.agent.tools", "TOOLS"),
    ("mmreason.agent.text_reading", "TEXT_READERS"),
)
#: Import name of optional packages -> what they give, how to get them.
EXTRAS = {
    "flash_attn": (
        "faster attention on a GPU",
        "pip install 'mmreason[flash]' (compiles; needs the CUDA toolkit)",
    ),
    "vllm": (
        "a server for trained models and for judges; mmreason itself samples without it, with tools and without",
        "pip install 'mmreason[vllm]'",
    ),
    "gradio": ("web pages", "pip install 'mmreason[demo]'"),
}
#: Name of the check of the embedded model.
TINY = "model=tiny"
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One finding: `bad` stops training; `missing` stops something optional; `note` is worth knowing."""

    group: str
    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def run_doctor(console: Console | None = None) -> int:
    """Print every check; returns 0 when training can run here, else 1."""
    console = console or Console()
    checks = list(examine())
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in ("group", "name", "verdict"):
        table.add_column(no_wrap=True)
    table.add_column("found", overflow="fold")
    group = ""
    for check in checks:
        shown = check.group if check.group != group else ""
        group = check.group
        found = escape(check.found) + (f"\n[cyan]→[/] {escape(check.advice)}" if check.advice else "")
        table.add_row(f"[bold]{shown}[/]", check.name, _MARKS[check.verdict], found)
    console.print(table)
    bad = [check for check in checks if check.verdict == "bad"]
    if bad:
        console.print(f"\n[red]Training cannot run here:[/] {', '.join(check.name for check in bad)}.")
        return 1
    if any(check.name == TINY and check.verdict == "missing" for check in checks):
        console.print(
            "\n[green]Training can run here[/], but not the quickstart, whose model is missing. Make it with: make tiny-vlm"
        )
        return 0
    console.print("\n[green]Training can run here.[/] Start with: mmreason train")
    return 0


def examine() -> Iterator[Check]:
    """All checks, cheap ones first."""
    yield from check_machine()
    yield from check_versions()
    yield from check_torch()
    yield from check_models()
    yield from check_extras()
    yield from check_text_readers()
    yield from check_plugins()


def check_machine() -> Iterator[Check]:
    """Python, processor, memory and disk."""
    supported = metadata("mmreason")["Requires-Python"] or ""
    good = SpecifierSet(supported).contains(platform.python_version(), prereleases=True)
    advice = "" if good else f"install a Python that mmreason supports: {supported}"
    yield Check(
        "machine",
        "Python",
        "ok" if good else "bad",
        f"{platform.python_version()} on {platform.system()}",
        advice,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("machine", "CPU cores", "ok", f"{cores} usable, {platform.machine()}")
    memory = memory_limit_bytes()
    if memory is not None:
        small = memory < 4 * _GIB
        yield Check(
            "machine",
            "memory",
            "note" if small else "ok",
            f"{memory / _GIB:.1f} GiB",
            "the quickstart needs up to 4 GiB; lower rollout.prompts_per_step" if small else "",
        )
    free = shutil.disk_usage(".").free
    full = free < _GIB
    yield Check(
        "machine",
        "disk here",
        "note" if full else "ok",
        f"{free / _GIB:.1f} GiB free",
        "runs/ may not fit" if full else "",
    )


def check_versions() -> Iterator[Check]:
    """Every dependency that mmreason declares, against the declared range."""
    for line in requires("mmreason") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield check_requirement(requirement)


def check_requirement(requirement: Requirement) -> Check:
    """One dependency: installed, and inside the supported range?"""
    supported = f"supported: {requirement.specifier}" if str(requirement.specifier) else "any version"
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Check(
            "packages",
            requirement.name,
            "bad",
            f"not installed ({supported})",
            f"pip install '{requirement}'",
        )
    if requirement.specifier.contains(found, prereleases=True):
        return Check("packages", requirement.name, "ok", f"{found} ({supported})")
    return Check("packages", requirement.name, "bad", f"{found} ({supported})", f"pip install '{requirement}'")


def check_torch() -> Iterator[Check]:
    """Whether torch and torchvision load together, which devices there are, which attention would be used."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Check(
            "torch",
            "import torch",
            "bad",
            _first_line(error),
            "pip install --force-reinstall torch torchvision",
        )
        return
    yield Check("torch", "import torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    yield check_torchvision(lambda: importlib.import_module("torchvision.ops"))
    yield from _devices(torch)
    yield check_attention(torch)
    yield check_prompt_once(torch)


def check_torchvision(load: Callable[[], Any]) -> Check:
    """Import torchvision's compiled operators; a build for another torch fails here, obscurely."""
    try:
        load()
    except (ImportError, OSError, RuntimeError) as error:
        advice = (
            "torch and torchvision were built for different versions of each other; install them together, "
            "from the same index: pip install --force-reinstall torch torchvision"
        )
        return Check("torch", "torchvision operators", "bad", _first_line(error), advice)
    return Check("torch", "torchvision operators", "ok", "load")


def check_attention(torch: Any) -> Check:
    """The attention kernels that `model.attention=auto` would choose."""
    try:
        from mmreason.policy.policy import resolve_attention
    except (ImportError, OSError, RuntimeError) as error:
        return Check("torch", "attention", "bad", _first_line(error), "repair the packages marked above")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = resolve_attention("auto", device)
    advice = (
        "flash_attention_2 is faster here: " + EXTRAS["flash_attn"][1]
        if device.type == "cuda" and chosen == "sdpa"
        else ""
    )
    return Check("torch", "attention", "note" if advice else "ok", f"{chosen} on {device.type}", advice)


def check_prompt_once(torch: Any) -> Check:
    """The attention tier that shared prompts would use, after its numeric self-check, and why not a faster one."""
    try:
        from mmreason.prompt_once.tiers import choose
    except (ImportError, OSError, RuntimeError) as error:
        return Check("torch", "prompt once", "bad", _first_line(error), "repair the packages marked above")
    on_gpu = torch.cuda.is_available()
    chosen = choose(torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16 if on_gpu else torch.float32)
    passed = "; ".join(f"{name}: {reason}" for name, reason in chosen.passed_over.items())
    found = f"tier {chosen.name}, numbers checked" + (f" (not {passed})" if passed else "")
    return Check("torch", "prompt once", "ok", found)


def check_models() -> Iterator[Check]:
    """The embedded models, and where hub models would come from."""
    from mmreason.policy.tiny import EMBEDDED_DIRS, make_target

    for name, folder in EMBEDDED_DIRS.items():
        weights = sorted(folder.glob("*.safetensors"))
        if (folder / "config.json").is_file() and weights:
            size = sum(file.stat().st_size for file in weights) / 1e6
            yield Check("models", f"model={name}", "ok", f"shipped, {size:.1f} MB")
        else:
            advice = f"reinstall, or retrain it: make {make_target(name)}"
            yield Check("models", f"model={name}", "missing", "not in this copy", advice)
    yield check_hub(dict(os.environ))


def check_hub(environment: dict[str, str]) -> Check:
    """What the environment says about the hub; nothing is contacted."""
    cache = environment.get("HF_HUB_CACHE") or str(Path(environment.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    folder = Path(cache).expanduser()
    kept = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    held = f"{kept} {'model' if kept == 1 else 'models'} in {folder}"
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Check(
            "models",
            "hub",
            "note",
            f"switched off by HF_HUB_OFFLINE; {held}",
            "unset it, or pass a folder: model=PATH",
        )
    return Check("models", "hub", "ok", f"not contacted by this check; {held}")


def check_extras() -> Iterator[Check]:
    """Optional packages, and the browser that the report's test drives."""
    for module, (gives, advice) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Check("optional", module, "ok" if there else "missing", gives, "" if there else advice)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    driver = shutil.which("chromedriver")
    there = browser is not None and driver is not None
    found = f"{browser or 'no Chromium'}, {driver or 'no chromedriver'} (tests of the report only)"
    advice = "" if there else "apt-get install chromium chromium-driver"
    yield Check("optional", "browser", "ok" if there else "missing", found, advice)


def check_text_readers() -> Iterator[Check]:
    """The engine that reads text off pictures, for the tools `read_text` and `search`."""
    try:
        from mmreason.agent.text_reading import chosen_reader
        from mmreason.errors import PluginError

        name = chosen_reader().name
    except PluginError as error:
        found = "none: read_text cannot read, and search finds only pages that come with a text"
        yield Check("optional", "text reader", "missing", found, str(error))
    except Exception as error:  # noqa: BLE001 - a plug-in's engine may raise anything when it is asked whether it is there
        found = f"{type(error).__name__}: {_first_line(error)}"
        yield Check("optional", "text reader", "missing", found, "repair or uninstall it")
    else:
        yield Check("optional", "text reader", "ok", f"{name}, for the tools read_text and search")


def check_plugins() -> Iterator[Check]:
    """Every registry: how many plug-ins, and which entry points failed to load, by name."""
    told: set[tuple[str, str]] = set()
    for module, attribute in REGISTRIES:
        try:
            registry = getattr(importlib.import_module(module), attribute)
            names = registry.names()
        except Exception as error:  # noqa: BLE001 - a plug-in's import may raise anything; doctor must still finish
            yield Check(
                "plug-ins",
                module,
                "bad",
                f"{type(error).__name__}: {_first_line(error)}",
                "repair or uninstall it",
            )
            continue
        yield Check("plug-ins", f"{registry.kind}s", "ok", ", ".join(names) or "none")
        for name, reason in sorted(registry.broken.items()):
            # Tools and text readers, rewards and shapers come through one door: an entry point is told once.
            if (registry.entry_point_group, name) not in told:
                told.add((registry.entry_point_group, name))
                yield Check(
                    "plug-ins", f"{registry.kind} {name}", "missing", reason, "repair or uninstall that package"
                )


def memory_limit_bytes() -> int | None:
    """Memory that this process may use: the machine's, or its container's limit where that is lower."""
    try:
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = min(limit, int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return limit


def _devices(torch: Any) -> Iterator[Check]:
    if not torch.cuda.is_available():
        advice = "" if torch.version.cuda is None else "if this machine has one, nvidia-smi must list it"
        found = "none: the tiny model trains on the CPU; real models need one"
        yield Check("torch", "GPU", "note", found, advice)
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield Check("torch", f"GPU {index}", "ok", f"{facts.name}, {facts.total_memory / _GIB:.0f} GiB, {bfloat16}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
