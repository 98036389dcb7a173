"""Videos, cameras and windows: all there is of OpenCV. It is imported on use, because it needs system libraries (libGL)
that a machine which only looks at pictures may lack.
"""
import os
import sys

import numpy as np
import torch

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".mts", ".m2ts")


def check_opencv(window=False):
    """Raises ValueError where OpenCV cannot be loaded, or, if a window is asked for, cannot open one."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError(f"videos, --webcam and --show need OpenCV, which cannot be loaded ({error}): install libgl1, "
                         "or opencv-python-headless in place of opencv-python") from None
    if window and any("GUI:" in line and "NONE" in line for line in cv2.getBuildInformation().splitlines()):
        raise ValueError("--show: this OpenCV opens no windows; replace opencv-python-headless by opencv-python")
    if window and sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ValueError("--show: there is no screen here, DISPLAY is not set")


class VideoReader:
    """Iterate over it for the frames of a video file (a path) or a camera (its number): uint8 RGB [3, H, W] tensors.

    rate    frames a second, 25 where the source does not say
    count   the number of frames it announces, None where it does not
    Raises ValueError where not one frame can be read. A damaged file just ends early: OpenCV says no more, and `check_end`
    tells afterwards.
    """

    def __init__(self, source):
        import cv2

        self.source, self.capture = source, cv2.VideoCapture(source)
        rate, count = self.capture.get(cv2.CAP_PROP_FPS), self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 0 < rate < 1000 else 25.0
        self.count = round(count) if count > 0 else None
        self.frames, self.seconds = 0, 0.0      # that have come so far

    def __iter__(self):
        import cv2

        found, frame = self.capture.read()
        if not found:
            name = f"--webcam {self.source}" if isinstance(self.source, int) else self.source
            raise ValueError(f"{name}: OpenCV can read no frame of it")
        while found:
            self.frames, self.seconds = self.frames + 1, self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            yield torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1)
            found, frame = self.capture.read()

    def check_end(self):
        """Raises ValueError where clearly less came than the file announces: fewer frames, and less time too, because some
        containers know their duration only and guess the frames from it."""
        if self.count and self.frames + 5 < 0.9 * self.count and self.seconds < 0.9 * self.count / self.rate:
            raise ValueError(f"{self.source}: ends after {self.frames} of the {self.count} frames that it announces")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.capture.release()


class VideoWriter:
    """Writes Pillow pictures as the frames of an mp4 file, which exists from the first frame on; frames of another size become as large as the first."""

    def __init__(self, path, rate):
        self.path, self.writer = path, None
        self.rate = round(rate) if rate > 65 else rate      # MPEG-4 has 16 bits for it, in thousandths where it is no short decimal

    def write(self, picture):
        import cv2

        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), self.rate, picture.size)
            if not self.writer.isOpened():
                raise ValueError(f"{self.path}: OpenCV cannot write an mp4 video there")
            self.size = picture.size
        self.writer.write(np.asarray(picture.resize(self.size))[:, :, ::-1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.writer is not None:
            self.writer.release()


def show(picture, wait_ms):
    """Shows a Pillow picture in a window; whether to go on: False after q or Esc. wait_ms 0 waits for a key."""
    import cv2

    cv2.imshow("detect", np.asarray(picture)[:, :, ::-1])
    return cv2.waitKey(wait_ms) & 0xFF not in (ord("q"), 27)
