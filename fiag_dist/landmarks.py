"""Which of the 478 tracked landmarks are what (MediaPipe's numbering, which is public)."""

LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
RIGHT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
LEFT_EYE = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
STABLE = (33, 133, 263, 362, 1, 4, 6, 168, 10, 151, 127, 356, 9, 8, 197, 67, 297)
"""Points that hardly move with speech: eye corners, nose, forehead, temples."""
LIPS_AND_LIDS = (*LIPS_OUTER, *LIPS_INNER, *RIGHT_EYE, *LEFT_EYE)
