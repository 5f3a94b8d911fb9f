"""Transforms of pictures, and augmentation of training rows: sizes, shares, boxes, and the same pictures after a restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmreason.boxes import Boxes, Frame
from mmreason.config.compose import compose
from mmreason.config.schema import AugmentConfig, TaskConfig
from mmreason.data.base import build_task
from mmreason.data.transforms import augment_row, crop_region, gaussian_blur, gaussian_noise, mask_patches
from mmreason.errors import ConfigError
from mmreason.records import Row
from mmreason.train.rows import FileRows, TaskRows, TrainingRows

sides = st.integers(1, 70)


def colourful(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """No pixel is black."""
    pixels = np.random.default_rng(seed).integers(40, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def array(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image)


# ---------------------------------------------------------------------- masked patches


@given(
    width=sides,
    height=sides,
    patch=st.integers(1, 20),
    probability=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_masked_cells_are_whole_cells_and_nothing_else_changes(
    width: int, height: int, patch: int, probability: float, seed: int
) -> None:
    image = colourful(width, height)
    before = array(image).copy()
    masked = mask_patches(image, probability, patch, np.random.default_rng(seed))
    assert masked.size == image.size
    assert (array(image) == before).all()
    num_masked = num_cells = 0
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            cell = array(masked)[top : top + patch, left : left + patch]
            black = (cell == 0).all()
            assert black or (cell == before[top : top + patch, left : left + patch]).all()
            num_masked += bool(black)
            num_cells += 1
    assert num_cells == -(-width // patch) * -(-height // patch)
    if probability in (0.0, 1.0):
        assert num_masked == probability * num_cells


def test_each_cell_is_masked_with_the_given_probability_on_its_own() -> None:
    shares = []
    for seed in range(40):
        masked = mask_patches(colourful(140, 98), 0.6, 14, np.random.default_rng(seed))
        shares.append((array(masked)[::14, ::14] == 0).all(axis=2).mean())
    assert np.mean(shares) == pytest.approx(0.6, abs=0.03)
    # 70 independent cells: the standard deviation of their share is 0.0586; an exact count would have none.
    assert np.std(shares) == pytest.approx(0.0586, abs=0.025)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_is_masked(mode: str) -> None:
    image = Image.new("I;16", (30, 17), 999) if mode == "I;16" else colourful(30, 17, mode)
    for changed in (
        mask_patches(image, 1.0, 14, np.random.default_rng(0)),
        gaussian_noise(image, 5.0, np.random.default_rng(0)),
        gaussian_blur(image, 1.0),
    ):
        assert changed.size == image.size
        assert changed.mode == ("RGBA" if mode in ("RGBA", "LA") else "RGB")
    assert not array(mask_patches(image, 1.0, 14, np.random.default_rng(0)))[..., :3].any()


def test_transparency_stays() -> None:
    image = colourful(30, 30, "RGBA")
    image.putalpha(77)
    for changed in (mask_patches(image, 0.5, 7, np.random.default_rng(0)), gaussian_blur(image, 2.0)):
        assert (array(changed)[..., 3] == 77).all()


@pytest.mark.parametrize(("probability", "patch"), [(-0.1, 14), (1.1, 14), (float("nan"), 14), (0.5, 0)])
def test_wrong_numbers_are_refused(probability: float, patch: int) -> None:
    with pytest.raises(ValueError, match="probability=|patch_px="):
        mask_patches(colourful(8, 8), probability, patch, np.random.default_rng(0))


# ---------------------------------------------------------------------- noise and blur


@given(width=sides, height=sides, std=st.floats(0, 60), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_noise_is_seeded_and_keeps_the_size(width: int, height: int, std: float, seed: int) -> None:
    image = colourful(width, height)
    one, two = (gaussian_noise(image, std, np.random.default_rng(seed)) for _ in range(2))
    assert one.size == image.size
    assert (array(one) == array(two)).all()


def test_noise_has_the_given_strength() -> None:
    gray = Image.new("RGB", (200, 200), (128, 128, 128))
    noisy = array(gaussian_noise(gray, 12.0, np.random.default_rng(0))).astype(float)
    assert noisy.std() == pytest.approx(12.0, abs=0.2)
    assert noisy.mean() == pytest.approx(128.0, abs=0.2)
    assert (array(gaussian_noise(gray, 0.0, np.random.default_rng(0))) == 128).all()


def test_blur_smooths_and_keeps_the_mean() -> None:
    image = colourful(120, 90)
    spread = [array(gaussian_blur(image, radius)).astype(float).std() for radius in (0.0, 0.7, 1.5, 3.0)]
    assert spread == sorted(spread, reverse=True)
    assert array(gaussian_blur(image, 2.0)).mean() == pytest.approx(array(image).mean(), abs=1.0)
    assert (array(gaussian_blur(image, 0.0)) == array(image)).all()
    with pytest.raises(ValueError, match="radius_px"):
        gaussian_blur(image, -1.0)


# ---------------------------------------------------------------------- crops


@given(data=st.data(), width=st.integers(1, 300), height=st.integers(1, 300), share=st.floats(0.01, 1.0))
@settings(max_examples=200, deadline=None)
def test_a_crop_holds_every_box_whole(data: st.DataObject, width: int, height: int, share: float) -> None:
    boxes = []
    for _ in range(data.draw(st.integers(0, 3))):
        x = sorted(data.draw(st.tuples(st.floats(0, width), st.floats(0, width))))
        y = sorted(data.draw(st.tuples(st.floats(0, height), st.floats(0, height))))
        boxes.append([x[0], y[0], x[1], y[1]])
    seed = data.draw(st.integers(0, 99))
    left, top, right, bottom = crop_region((width, height), share, boxes, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left >= share * width - 1e-9
    assert bottom - top >= share * height - 1e-9
    for x1, y1, x2, y2 in boxes:
        assert left <= x1 <= x2 <= right
        assert top <= y1 <= y2 <= bottom


def test_crops_vary_and_a_box_beyond_the_edge_breaks_nothing() -> None:
    rng = np.random.default_rng(0)
    assert len({crop_region((100, 100), 0.5, [], rng) for _ in range(50)}) > 40
    left, top, right, bottom = crop_region((100, 80), 0.5, [[-5.0, 60.0, 20.0, 95.0], [130.0, 0.0, 140.0, 5.0]], rng)
    assert (left, top, right, bottom) == (0, 0, 100, 80)
    with pytest.raises(ValueError, match="least_share"):
        crop_region((10, 10), 0.0, [], rng)


@given(index=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_boxes_move_with_the_crop(index: int) -> None:
    row = build_task(TaskConfig(name="grounding", difficulty=0, objects=[1, 1])).row(index)
    image = row.images[0]
    assert isinstance(image, Image.Image)
    config = AugmentConfig.model_validate({"random_crop": {"probability": 1.0, "least_share": 0.5}})
    cut = augment_row(row, [image], config, np.random.default_rng(index))
    picture = cut.images[0]
    assert isinstance(picture, Image.Image)
    assume(picture.size != image.size)
    old, new = (Boxes.of(item.target["boxes"], Frame.original_px).xyxy[0] for item in (row, cut))
    # The same pixels lie in the moved box.
    x1, y1 = int(np.ceil(old[0])), int(np.ceil(old[1]))
    dx, dy = round(old[0] - new[0]), round(old[1] - new[1])
    inside = (x1, y1, int(old[2]), int(old[3]))
    moved = (inside[0] - dx, inside[1] - dy, inside[2] - dx, inside[3] - dy)
    assert (array(image.crop(inside)) == array(picture.crop(moved))).all()
    assert row.target["boxes"] != cut.target["boxes"] or (dx, dy) == (0, 0)


# ---------------------------------------------------------------------- rows


def crop_config(**more: Any) -> AugmentConfig:
    return AugmentConfig.model_validate({"random_crop": {"probability": 1e-9}, **more})


@pytest.mark.parametrize("task", ["scene_qa", "counting", "time_series", "scene_caption"])
def test_a_crop_that_may_break_the_target_is_refused_however_seldom(task: str) -> None:
    row = build_task(TaskConfig(name=task)).row(0)
    config = crop_config(gaussian_noise={"probability": 1.0})
    with pytest.raises(ConfigError, match=r"augment\.random_crop cannot be used with row .*probability=0"):
        augment_row(row, [row.images[0]], config, np.random.default_rng(0))  # type: ignore[list-item]


def test_a_crop_of_several_images_or_of_written_boxes_is_refused() -> None:
    image, target = colourful(50, 40), {"boxes": [[1, 2, 3, 4]]}
    config = AugmentConfig.model_validate({"random_crop": {"probability": 1.0}})
    two = Row("r", ({"role": "user", "content": [{"type": "image"}] * 2},), (image, image), target)
    with pytest.raises(ConfigError, match="boxes and 2 images"):
        augment_row(two, [image, image], config, np.random.default_rng(0))
    part = {"type": "boxes", "boxes": [[1, 2, 3, 4]]}
    written = Row("r", ({"role": "user", "content": [{"type": "image"}, part]},), (image,), target)
    with pytest.raises(ConfigError, match="its question holds boxes"):
        augment_row(written, [image], config, np.random.default_rng(0))


def test_a_quality_score_outlives_a_crop_but_neither_noise_nor_blur_nor_masks() -> None:
    row = build_task(TaskConfig(name="image_quality")).row(0)
    image = row.images[0]
    assert isinstance(image, Image.Image)
    cut = augment_row(
        row, [image], AugmentConfig.model_validate({"random_crop": {"probability": 1.0}}), np.random.default_rng(1)
    )
    assert cut.target == row.target
    for name in ("gaussian_noise", "gaussian_blur", "mask_patches"):
        config = AugmentConfig.model_validate({name: {"probability": 1.0}})
        with pytest.raises(ConfigError, match=f"augment.{name} cannot be used"):
            augment_row(row, [image], config, np.random.default_rng(0))


def test_nothing_happens_without_a_probability_or_a_picture() -> None:
    row = build_task(TaskConfig(name="grounding")).row(0)
    assert augment_row(row, [row.images[0]], AugmentConfig(), np.random.default_rng(0)) is row  # type: ignore[list-item]
    text = build_task(TaskConfig(name="random_calculation")).row(0)
    config = AugmentConfig.model_validate({"gaussian_noise": {"probability": 1.0}})
    assert augment_row(text, [], config, np.random.default_rng(0)) is text


def test_how_often_a_transform_happens() -> None:
    row = build_task(TaskConfig(name="grounding")).row(0)
    config = AugmentConfig.model_validate({"mask_patches": {"probability": 0.3}})
    changed = [
        augment_row(row, [row.images[0]], config, np.random.default_rng(seed)) is not row  # type: ignore[list-item]
        for seed in range(400)
    ]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.07)


def test_training_rows_are_augmented_by_seed_and_position_alone(random_model: Callable[[str], str]) -> None:
    from mmreason.config.schema import ModelConfig
    from mmreason.policy.policy import Policy

    policy = Policy.load(ModelConfig(name=random_model("qwen2_5_vl")), device="cpu")
    config = AugmentConfig.model_validate({"gaussian_noise": {"probability": 0.7}, "random_crop": {"probability": 0.7}})
    task = build_task(TaskConfig(name="grounding"))

    def shown(positions: list[int], seed: int = 0, augment: AugmentConfig | None = config) -> dict[int, bytes]:
        rows = TrainingRows(TaskRows(task), policy, augment=augment, seed=seed, cache_size=2)
        return {p: rows.prepared(p).images[0].tobytes() + str(rows.prepared(p).row.target).encode() for p in positions}

    straight = shown(list(range(8)))
    assert {p: straight[p] for p in (5, 6, 7)} == shown([7, 5, 6])  # a continued run starts in the middle
    assert shown([0, 1, 2, 3], seed=1) != {p: straight[p] for p in (0, 1, 2, 3)}
    plain = shown(list(range(8)), augment=None)
    assert 0 < sum(plain[p] == straight[p] for p in plain) < 8
    # The same row of a file looks different in every epoch.
    one = TrainingRows(FileRows([task.row(3)], 0), policy, augment=config)
    assert len({one.prepared(position).images[0].tobytes() for position in range(6)}) > 3


def test_held_out_rows_stay_as_they_are() -> None:
    from mmreason.evaluate import held_out_rows

    words = ["augment.gaussian_noise.probability=1", "trainer.eval_rows=3"]
    config = compose("train", words).config
    rows, *_ = held_out_rows(config)
    plain, *_ = held_out_rows(compose("train", words[1:]).config)
    assert [row.images[0].tobytes() for row in rows] == [row.images[0].tobytes() for row in plain]  # type: ignore[union-attr]


def test_options_of_augmentation_are_strict() -> None:
    config = compose("train", ["augment.random_crop.probability=0.5", "augment.mask_patches.share=0.4"]).config
    assert list(config.augment.active()) == ["random_crop"]
    for words, said in (
        (["augment.random_crop.probability=1.5"], r"augment\.random_crop\.probability=1\.5: expected a number"),
        (["augment.random_crop.chance=1"], r"augment\.random_crop\.chance: unknown option"),
        (["augment.rotate.probability=1"], r"augment\.rotate: unknown option"),
    ):
        with pytest.raises(ConfigError, match=said):
            compose("train", words)
    for command, words in (("sft", ["recipe=tiny_vlm"]), ("eval", [])):
        with pytest.raises(ConfigError, match="only `mmreason train` changes pictures"):
            compose(command, [*words, "augment.random_crop.probability=0.5"])
