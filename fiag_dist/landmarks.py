"""Which of the 478 tracked landmarks are what (MediaPipe's numbering), and where the eyes look by them."""

import numpy as np
from jaxtyping import Float, Float64

NUM_VERTICES = 468
"""Landmarks on the skin, vertices of the canonical face; the ten after them are the irises."""
FACE_OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149,
             150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
RIGHT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
LEFT_EYE = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
RIGHT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
LEFT_BROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
RIGHT_IRIS = (468, 469, 470, 471, 472)
LEFT_IRIS = (473, 474, 475, 476, 477)
FOREHEAD_TOP, CHIN = 10, 152
NOSE_TIP, BELOW_NOSE_TIP, NOSE_BASE = 4, 1, 2
"""The foremost point, the one 7 mm below it, and the one where the nose ends above the lip."""
RIGHT_CHEEK, LEFT_CHEEK = 234, 454
"""Ends of the face's width, before the ears."""
RIGHT_LOBE, LEFT_LOBE = 132, 361
"""Points of the oval at the height of the ear lobes."""
INNER_LIP_TOP, INNER_LIP_BOTTOM = 13, 14
UPPER_LIP, LOWER_LIP = (191, 80, 81, 82, 13, 312, 311, 310, 415), (95, 88, 178, 87, 14, 317, 402, 318, 324)
"""Inner edges of the lips, from corner to corner: the k-th of one lies on the k-th of the other when the mouth is closed."""
UPPER_LIP_EDGE, LOWER_LIP_EDGE = (185, 40, 39, 37, 0, 267, 269, 270, 409), (146, 91, 181, 84, 17, 314, 405, 321, 375)
"""Outer edges, the k-th beside the k-th of the inner ones."""
LIP_CORNERS = (61, 78, 291, 308)
RIGHT_LIP_CORNER, LEFT_LIP_CORNER = 78, 308
"""Inner corners."""
RIGHT_EYE_OUTER, LEFT_EYE_OUTER = 33, 263
RIGHT_EYE_INNER, LEFT_EYE_INNER = 133, 362
ALIGNED = (33, 133, 263, 362, 1, 4, 6, 168, 10, 151, 127, 356, 9, 8, 197, 67, 297)
"""A few of RIGID, by which one picture of a face is laid over another: eye corners, nose, forehead, temples."""
RIGID = tuple(sorted({
    33, 133, 263, 362, 1, 2, 4, 5, 6, 168, 197, 195, 98, 327, 129, 358, 48, 278, 64, 294, 115, 344, 220, 440, 122, 351, 193, 417, 245,
    465, 19, 94, 10, 67, 103, 109, 151, 297, 332, 338, 9, 8, 54, 284, 69, 299, 108, 337, 127, 234, 356, 454, 21, 251, 162, 389, 117, 118,
    119, 346, 347, 348, 50, 280, 101, 330, 100, 329, 36, 266, 121, 350, 128, 357, 114, 343, 47, 277, 126, 355, 209, 429, 198, 420,
}))  # fmt: skip
"""Points that speech and expression hardly move, by which poses are found: eye corners, nose, forehead, cheekbones, upper oval."""
OVAL_SIDES = (127, 234, 356, 454, 21, 251, 162, 389, 54, 284, 103, 332)
"""Those of RIGID on the outline, but for the top of the forehead: they slide over the head as it turns."""
LIDS = ((159, 145), (386, 374))
"""Middle of the upper and of the lower lid, right eye and left."""
IRISES = (*RIGHT_IRIS, *LEFT_IRIS)
"""Centre and four points of the edge of each."""
LIPS_AND_LIDS = (*LIPS_OUTER, *LIPS_INNER, *RIGHT_EYE, *LEFT_EYE)
LIPS = (*UPPER_LIP, *UPPER_LIP_EDGE, *LOWER_LIP, *LOWER_LIP_EDGE, *LIP_CORNERS)


def gaze(landmarks: Float[np.ndarray, "frames 478 coordinates"]) -> Float64[np.ndarray, "frames 2"]:
    """How far the irises are to the person's left and up from the middle between the eye's corners, along and across the line through these.

    Mean of both eyes, in widths of the eye.
    """
    points, eyes = landmarks[..., :2].astype(np.float64), []
    for iris, right, left in (
        (RIGHT_IRIS[0], RIGHT_EYE_OUTER, RIGHT_EYE_INNER),
        (LEFT_IRIS[0], LEFT_EYE_INNER, LEFT_EYE_OUTER),
    ):
        across = points[:, left] - points[:, right]
        off = points[:, iris] - (points[:, left] + points[:, right]) / 2
        up = np.stack([across[:, 1], -across[:, 0]], 1)
        width2 = np.maximum(np.square(across).sum(1, keepdims=True), 1e-6)
        eyes.append(np.stack([(off * across).sum(1), (off * up).sum(1)], 1) / width2)
    return np.mean(eyes, axis=0)
