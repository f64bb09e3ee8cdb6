"""The drawn world: its scenes, its captions, and the judge who looks at pictures of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.builtin.train.backgrounds import BACKGROUNDS, PHOTO, make_ground
from worker.builtin.train.captions import KNOWN_WORDS, WORDS
from worker.builtin.train.drawing import Place, rectangle
from worker.builtin.train.figures import Box, draw_on_a_bench
from worker.builtin.train.judging import colour_share, look_at
from worker.builtin.train.palette import COLOUR_NAMES, COLOURS, tint
from worker.builtin.train.scenes import NARROW, THINGS, WIDE, WORLDS, Scene, World, make_scene
from worker.builtin.train.shapes import SHAPES, any_tilt, draw_shape
from worker.builtin.train.sitting import SittingWish, judge_sitting, make_sitting_wishes
from worker.builtin.train.things import THING_NAMES, draw_thing
from worker.builtin.train.trials import judge, make_wishes

SIZE = 96


def scenes(world: World, count: int = 200, seed: int = 3) -> list[Scene]:
    random = np.random.default_rng(seed)
    return [make_scene(random, SIZE, world) for _ in range(count)]


def drawn(colour: str, shape: str, background: str, seed: int) -> NDArray[np.uint8]:
    """As it stands in a scene: tinted, leaning, somewhere."""
    random = np.random.default_rng(seed)
    image = np.full((SIZE, SIZE, 3), tint(random, background), np.float32)
    x, y = SIZE / 2 + random.uniform(-4, 4, 2)
    draw_shape(Place(image, x, y, random.uniform(26, 40)), shape, tint(random, colour), radians=any_tilt(random))
    return np.clip(image, 0, 255).astype(np.uint8)


def test_equal_seeds_draw_equal_scenes_and_others_others() -> None:
    one, again, other = scenes(WIDE, 5), scenes(WIDE, 5), scenes(WIDE, 5, seed=4)
    for first, second in zip(one, again, strict=True):
        assert first.caption == second.caption
        assert np.array_equal(first.picture, second.picture)
        assert np.array_equal(first.mask, second.mask)
    assert not any(np.array_equal(first.picture, third.picture) for first, third in zip(one, other, strict=True))


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_every_scene_has_a_mask_that_asks_for_something(world: World) -> None:
    for scene in scenes(world):
        assert scene.picture.shape == (SIZE, SIZE, 3) and scene.picture.dtype == np.uint8
        assert set(np.unique(scene.mask)) <= {0, 1} and scene.mask.any()


def test_captions_are_made_of_the_worlds_words() -> None:
    said = [word for scene in scenes(WIDE, 600) for word in scene.caption.split()]
    unknown = [word for word in said if word not in WORDS]
    assert 0 < len(unknown) < 0.02 * len(said)  # the words that nobody knows are meant


def test_every_word_that_counts_as_known_is_said_often_or_says_nothing() -> None:
    said = Counter(word for world in WORLDS.values() for scene in scenes(world, 2500) for word in scene.caption.split())
    never = {word for word in KNOWN_WORDS if not said[word]}
    assert never <= {"at", "in", "the", "with"}
    assert not any(said[word] for word in set(WORDS) - set(KNOWN_WORDS))


def test_the_wide_world_names_all_there_is_with_relations() -> None:
    captions = [scene.caption for scene in scenes(WIDE, 3000)]
    text = " ".join(captions)
    for name in (*COLOUR_NAMES, *SHAPES, *THING_NAMES):
        assert name in text, name
    for relation in ("next to", "above", "below", "sitting on a bench", " and a"):
        assert any(relation in caption for caption in captions), relation
    assert "" in captions


def test_the_narrow_world_is_mostly_single_figures() -> None:
    def share(world: World) -> float:
        return float(np.mean([any(shape in scene.caption for shape in SHAPES) for scene in scenes(world, 600)]))

    assert share(NARROW) > 1.3 * share(WIDE)


def test_the_world_of_things_often_has_one_on_a_bench() -> None:
    captions = [scene.caption for scene in scenes(THINGS, 600)]
    assert sum(any(thing in caption for thing in THING_NAMES) for caption in captions) > 0.6 * len(captions)
    assert sum("bench" in caption and " on " in caption for caption in captions) > 0.2 * len(captions)


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_every_background_covers_its_area_and_has_its_caption(kind: str) -> None:
    ground = make_ground(np.random.default_rng(1), 64, 48, kind)
    assert ground.image.shape == (48, 64, 3)
    assert ground.image.min() >= 0 and ground.image.max() <= 255
    assert (ground.caption is None) == (kind == PHOTO)


@pytest.mark.parametrize("name", THING_NAMES)
def test_a_thing_is_drawn_in_the_colour_asked_for(name: str) -> None:
    image = np.full((SIZE, SIZE, 3), COLOURS["white"], np.float32)
    draw_thing(Place(image, SIZE / 2, SIZE / 2, 40), name, "purple", np.random.default_rng(2))
    assert colour_share(image.astype(np.uint8), "purple") > 0.04


def test_the_judge_sees_colour_background_and_shape_in_drawings() -> None:
    wishes = make_wishes(300, seed=8)
    parts = [drawn(wish.colour, wish.shape, wish.background, wish.seed) for wish in wishes]
    seen = judge(wishes, parts)
    assert seen.colour >= 0.98
    assert seen.background >= 0.99
    assert seen.shape >= 0.98
    exchanged = judge(wishes, parts[1:] + parts[:1])
    assert max(exchanged.colour, exchanged.background, exchanged.shape) < 0.2


def test_the_judge_is_not_misled_by_a_smear_beside_the_figure() -> None:
    for name in SHAPES:
        picture = drawn("red", name, "white", seed=3)
        picture[:4, 30:60] = (225, 170, 170)
        picture[88:94, 80:] = (215, 30, 35)
        assert look_at(picture).shape == name


def test_the_judge_sees_no_shape_in_hairlines() -> None:
    picture = np.full((64, 64, 3), COLOURS["white"], np.uint8)
    picture[10:-10, 20:50:6] = COLOURS["red"]
    seen = look_at(picture)
    assert (seen.colour, seen.shape) == ("red", None)


def test_the_judge_sees_no_figure_on_an_empty_background() -> None:
    seen = look_at(np.full((64, 64, 3), COLOURS["green"], np.uint8))
    assert (seen.background, seen.colour, seen.shape) == ("green", None, None)


def sitting(wish: SittingWish, *, size: int = 160, lifted: int = 0) -> NDArray[np.uint8]:
    """As the world draws it; what sits there moved up by so many pixels."""
    random = np.random.default_rng(wish.seed)
    image = np.full((size, size, 3), tint(random, wish.background), np.float32)
    colours = {"sitter_colour": wish.colour, "bench_colour": wish.bench}
    box = Box(size / 8, size / 8, size * 7 / 8, size * 7 / 8)
    if not lifted:
        draw_on_a_bench(random, image, box, sitter=wish.sitter, **colours)
        return np.clip(image, 0, 255).astype(np.uint8)
    draw_thing(Place(image, size / 2, size * 0.6, size * 0.35), "bench", wish.bench, random)
    draw_thing(Place(image, size / 2, size * 0.4 - lifted, size * 0.22), wish.sitter, wish.colour, random)
    return np.clip(image, 0, 255).astype(np.uint8)


def test_the_judge_sees_what_sits_on_a_bench_in_drawings() -> None:
    wishes = make_sitting_wishes(72, seed=4)
    assert len({wish.prompt for wish in wishes}) == 72
    parts = [sitting(wish) for wish in wishes]
    seen = judge_sitting(wishes, parts)
    assert min(seen.bench, seen.sitter, seen.on_it) >= 0.97
    assert judge_sitting(wishes, parts[1:] + parts[:1]).sitter < 0.1


def test_the_judge_sees_when_it_floats_above_the_bench() -> None:
    wishes = make_sitting_wishes(20, seed=5)
    seen = judge_sitting(wishes, [sitting(wish, lifted=24) for wish in wishes])
    assert min(seen.bench, seen.sitter) >= 0.9
    assert seen.on_it == 0


def test_the_judge_takes_no_bar_for_a_bench_and_no_house_for_a_cat() -> None:
    [wish] = make_sitting_wishes(1, seed=6)
    image = np.full((160, 160, 3), COLOURS[wish.background], np.float32)
    Place(image, 80, 110, 60).polygon(rectangle(-1, 0, 1, 0.3), COLOURS[wish.bench])
    draw_thing(Place(image, 80, 70, 40), "house", wish.colour, np.random.default_rng(1))
    seen = judge_sitting([wish], [image.astype(np.uint8)])
    assert (seen.bench, seen.sitter, seen.on_it) == (0, 0, 0)


def test_nothing_sits_on_an_empty_background() -> None:
    [wish] = make_sitting_wishes(1, seed=7)
    seen = judge_sitting([wish], [np.full((64, 64, 3), COLOURS[wish.background], np.uint8)])
    assert (seen.bench, seen.sitter, seen.on_it) == (0, 0, 0)


def test_wishes_are_evenly_spread_and_distinct() -> None:
    wishes = make_wishes(200, seed=1)
    assert len({wish.prompt for wish in wishes}) == 200
    assert [sum(wish.shape == shape for wish in wishes) for shape in SHAPES] == [20] * len(SHAPES)
    assert all(wish.colour != wish.background for wish in wishes)
