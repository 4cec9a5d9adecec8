import math

import numpy as np
import pytest

from anyv2v.media.psnr import psnr


def test_psnr_is_its_closed_form():
    a = np.full((2, 3, 4, 3), 100, np.uint8)
    assert psnr(a, a) == 100.0
    for d in (1, 7, 100):
        assert psnr(a, a + np.uint8(d)) == pytest.approx(20 * math.log10(255 / d))
        assert psnr(a + np.uint8(d), a) == psnr(a, a + np.uint8(d))
