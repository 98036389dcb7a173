"""Two worlds: what render.py draws from. Pairs are (low, high) of a uniform draw.

"other" is never trained on: another ground, camera, light and other proportions, a stand-in for what is not rendered.
"""

STYLES = {
    "default": {
        "scale": 2.02,
        "scale_spread": 0.2,  # pixels per millimetre in a picture 2560 wide; spread of its logarithm
        "field_of_view": (20, 48),
        "tilt": (5, 56),  # degrees; tilt 0 looks straight down
        "sunny": 0.5,
        "sun_elevation": (22, 72),
        "warmth": 0.03,
        "grain": 1.0,
        "stones": 0.45,
        "grey": (82, 138),
        "tint": 2.5,
        "yellow_paint": 0.05,
        "exposure": (78, 165),
        "white_balance": 0.04,
        "blur": (0.5, 1.7),
        "noise": 5.0,
        "sharpen": (0.0, 3.0),
        "stretch": 0.06,
    },
    "other": {
        "scale": 1.9,
        "scale_spread": 0.28,
        "field_of_view": (45, 75),
        "tilt": (0, 40),
        "sunny": 0.7,
        "sun_elevation": (14, 50),
        "warmth": 0.12,
        "grain": 2.0,
        "stones": 1.0,
        "grey": (60, 165),
        "tint": 7.0,
        "yellow_paint": 0.5,
        "exposure": (60, 195),
        "white_balance": 0.08,
        "blur": (0.3, 2.6),
        "noise": 9.0,
        "sharpen": (1.5, 4.0),
        "stretch": 0.2,
    },
}
