"""The reward of the kept run: which characters of the answer stand where they belong."""


def places(response, answer):
    return {"places": sum(a == b for a, b in zip(response, answer, strict=False)) / len(answer)}
