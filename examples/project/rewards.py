"""The rewards of this project. A reward is a plain function whose parameters are filled by name: response, answer, prompt, tokens, ..."""


def in_order(response: str, answer: str) -> dict[str, float]:
    """Half for digits in their places, half for the whole answer; each part is logged as ``reward/in_order/...``."""
    right = sum(a == b for a, b in zip(response, answer, strict=False))
    return {"places": 0.5 * right / len(answer), "exact": 0.5 * (response == answer)}
