"""Renders a set without one ingredient of its pictures, to measure what that ingredient is worth.

    python foreign_object_dataset/without.py shadows --images 600 --size 640x360 --magnification 4 --output DIR

After the ingredient come the flags of render.py. The random numbers of what is left out are drawn all the same, so that little else
changes in a picture: without `camera` and `shadows` nothing does; without `bystanders` the rest lies elsewhere, since it lies around them.
"""

import multiprocessing
import sys

import numpy as np

import render
import scene
import sensor


def _no_shadow(*_):
    """In place of what darkens the ground: it stays as it is."""


def _sunlight_everywhere(rng, ground, span, softness, far_shadows=scene._far_shadows):
    return np.ones_like(far_shadows(rng, ground, span, softness))


def _no_bystanders(rng, camera, span, bystanders=scene._bystanders):
    bystanders(rng, camera, span)
    return []


def _only_objects(rng, camera, hidden, style, lying_things=scene._lying_things):
    return [(mesh, name) for mesh, name in lying_things(rng, camera, hidden, style) if name]


def _ideal(step):
    def unchanged(rng, image, *settings):
        step(rng, image.copy(), *settings)
        return image

    return unchanged


INGREDIENTS = {  # what stands in for which function
    "bystanders": {(scene, "_bystanders"): _no_bystanders},
    "clutter": {(scene, "_lying_things"): _only_objects},
    "shadows": {(scene, "cast"): _no_shadow, (scene, "occlude"): _no_shadow, (scene, "_far_shadows"): _sunlight_everywhere},
    "camera": {(sensor, step): _ideal(getattr(sensor, step)) for step in ("lens", "sensor", "codec")},
}


def leave_out(ingredient):
    """Changes the renderer of this process, and of those it forks."""
    for (module, name), stand_in in INGREDIENTS[ingredient].items():
        setattr(module, name, stand_in)


def main(arguments=None):
    ingredient, *flags = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if ingredient in ("-h", "--help"):
        print(f"{__doc__}\ningredients: {', '.join(INGREDIENTS)}")
        return 0
    if ingredient not in INGREDIENTS:
        print(f"error: '{ingredient}' is not one of {', '.join(INGREDIENTS)}", file=sys.stderr)
        return 2
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)  # processes that know of the change
    else:
        flags += ["--workers", "1"]
    leave_out(ingredient)
    render.main(flags)


if __name__ == "__main__":
    sys.exit(main())
