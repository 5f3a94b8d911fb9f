"""`mmreason doctor`: every verdict it can give, without needing a broken machine."""

from __future__ import annotations

import importlib
import io
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from mmreason import doctor
from mmreason.agent.text_reading import TEXT_READERS, text_reader
from mmreason.agent.tools import TOOLS
from mmreason.doctor import Check
from mmreason.policy import tiny
from mmreason.registry import Registry


def test_versions_are_held_against_the_declared_range() -> None:
    assert doctor.check_requirement(Requirement("pydantic>=2.8")).verdict == "ok"
    old = doctor.check_requirement(Requirement("pydantic>=999"))
    assert (old.verdict, old.advice) == ("bad", "pip install 'pydantic>=999'")
    assert "supported: >=999" in old.found
    absent = doctor.check_requirement(Requirement("no-such-package-here>=1"))
    assert absent.verdict == "bad"
    assert "not installed" in absent.found


def test_every_declared_dependency_is_checked_and_no_extra() -> None:
    names = {check.name for check in doctor.check_versions()}
    assert {"torch", "torchvision", "transformers", "trl", "hydra-core", "pydantic"} <= names
    assert not names & {"pytest", "vllm", "gradio", "flash-attn"}


def failing(error: Exception) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


def test_torchvision_built_for_another_torch_is_explained() -> None:
    check = doctor.check_torchvision(failing(RuntimeError("operator torchvision::nms does not exist\nmore")))
    assert check.verdict == "bad"
    assert check.found == "operator torchvision::nms does not exist"
    assert "install them together" in check.advice
    assert doctor.check_torchvision(lambda: None).verdict == "ok"


def test_torch_that_does_not_import_ends_the_torch_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    [check] = doctor.check_torch()
    assert check.verdict == "bad"
    assert "pip install" in check.advice


def test_hub_is_read_from_the_environment_only(tmp_path: Path) -> None:
    (tmp_path / "models--Qwen--Qwen2.5-VL-3B-Instruct").mkdir()
    found = doctor.check_hub({"HF_HUB_CACHE": str(tmp_path)})
    assert found.verdict == "ok"
    assert f"1 model in {tmp_path}" in found.found
    offline = doctor.check_hub({"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)})
    assert offline.verdict == "note"
    assert "HF_HUB_OFFLINE" in offline.found
    assert doctor.check_hub({"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}).verdict == "ok"


def test_embedded_model_is_found_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "EMBEDDED_DIRS", {"tiny": tmp_path, "tiny_tools": tmp_path / "other"})
    first, second, _ = doctor.check_models()
    assert (second.name, second.verdict, "make tiny-vlm-tools" in second.advice) == (
        "model=tiny_tools",
        "missing",
        True,
    )
    assert (first.verdict, "make tiny-vlm" in first.advice) == ("missing", True)
    monkeypatch.setattr(doctor, "examine", lambda: [first])
    page = io.StringIO()
    assert doctor.run_doctor(Console(file=page, width=120)) == 0
    assert "mmreason train" not in page.getvalue()
    assert "make tiny-vlm" in page.getvalue().splitlines()[-1]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0" * 2_000_000)
    first = next(doctor.check_models())
    assert (first.verdict, first.found) == ("ok", "shipped, 2.0 MB")


def test_broken_plugins_are_named_and_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[int] = Registry("reward", "mmreason.errors", "mmreason.no_such_group")
    registry.add("good", 1)
    registry.broken["bad_package"] = "ImportError: no module named x"
    fake = types.ModuleType("fake_registry")
    fake.REWARDS = registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_registry", fake)
    monkeypatch.setattr(doctor, "REGISTRIES", (("fake_registry", "REWARDS"), ("no_such_module_here", "X")))
    good, broken, unloadable = doctor.check_plugins()
    assert (good.verdict, good.found) == ("ok", "good")
    assert (broken.verdict, broken.name, broken.found) == (
        "missing",
        "reward bad_package",
        "ImportError: no module named x",
    )
    assert (unloadable.verdict, unloadable.name) == ("bad", "no_such_module_here")


def test_built_in_plugins_load() -> None:
    checks = list(doctor.check_plugins())
    found = {check.name: check.found for check in checks if check.verdict == "ok"}
    assert "iou" in found["rewards"]
    assert "grounding" in found["tasks"]
    assert "shapers" in found
    assert "crop" in found["tools"]
    assert "tesseract" in found["text readers"]
    assert {"loss terms", "advantage transforms"} <= set(found)
    assert not [check for check in checks if check.verdict == "bad"]


def test_every_registry_is_looked_into() -> None:
    modules = {module for module, _ in doctor.REGISTRIES}
    looked = {id(getattr(importlib.import_module(module), name)) for module, name in doctor.REGISTRIES}
    registries = {
        id(value): f"{value.kind} ({name})"
        for name, module in list(sys.modules.items())
        if name.startswith("mmreason.") or name in modules
        for value in vars(module).values()
        if isinstance(value, Registry)
    }
    assert len(looked) == len(doctor.REGISTRIES)
    assert not [where for key, where in registries.items() if key not in looked]


def test_an_entry_point_of_tools_that_breaks_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (TOOLS, TEXT_READERS):
        registry.names()
        monkeypatch.setattr(registry, "broken", {"bad_tools": "ImportError: no module named x"})
    broken = [check for check in doctor.check_plugins() if check.verdict == "missing"]
    assert [(check.name, check.found) for check in broken] == [("tool bad_tools", "ImportError: no module named x")]


def test_a_missing_engine_that_reads_text_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    TEXT_READERS.names()
    absent = {name: replace(spec, is_installed=lambda: False) for name, spec in TEXT_READERS._items.items()}
    monkeypatch.setattr(TEXT_READERS, "_items", absent)
    [check] = doctor.check_text_readers()
    assert (check.verdict, check.group) == ("missing", "optional")
    assert "search finds only pages that come with a text" in check.found
    assert "pip install pytesseract" in check.advice
    text_reader("mine")(object)  # type: ignore[type-var]
    [check] = doctor.check_text_readers()
    assert (check.verdict, check.found) == ("ok", "mine, for the tools read_text and search")
    text_reader("torn", failing(OSError("torn")))(object)  # type: ignore[type-var]
    [check] = doctor.check_text_readers()
    assert (check.verdict, check.found) == ("missing", "OSError: torn")


@pytest.mark.parametrize(("python", "verdict"), [("3.10.14", "bad"), ("3.11.0", "ok"), ("3.14.0rc2", "ok")])
def test_python_is_held_against_the_declared_range(python: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: python)
    check = next(doctor.check_machine())
    assert (check.name, check.verdict) == ("Python", verdict)
    assert (">=3.11" in check.advice) == (verdict == "bad")


def test_machine_has_memory_and_cores() -> None:
    memory = doctor.memory_limit_bytes()
    assert memory is None or memory > 2**28
    assert {check.name for check in doctor.check_machine()} >= {"Python", "CPU cores", "disk here"}


def test_optional_things_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    checks = list(doctor.check_extras())
    assert {check.name for check in checks} == {"flash_attn", "vllm", "gradio", "browser"}
    assert all(check.verdict == "missing" and check.advice for check in checks)
    served = next(check for check in checks if check.name == "vllm")
    assert "samples without it" in served.found


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("note", 0), ("missing", 0), ("bad", 1)])
def test_exit_code_and_table(verdict: doctor.Verdict, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Check("torch", "import torch", verdict, "found [bold]this[/]", "pip install 'mmreason[flash]'")
    monkeypatch.setattr(doctor, "examine", lambda: [check])
    page = io.StringIO()
    assert doctor.run_doctor(Console(file=page, width=120)) == code
    text = page.getvalue()
    # Brackets in findings are text, not markup.
    assert "found [bold]this[/]" in text
    assert "pip install 'mmreason[flash]'" in text
    assert ("cannot run" in text) == (code == 1)


@pytest.mark.slow
def test_this_machine_can_train() -> None:
    page = io.StringIO()
    assert doctor.run_doctor(Console(file=page, width=200)) == 0
    text = page.getvalue()
    assert "torchvision operators" in text
    assert "sdpa on cpu" in text or "on cuda" in text
