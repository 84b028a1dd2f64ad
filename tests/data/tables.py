"""A few rows of each named data set, with the columns that the hub's tables have. ``(hub, configuration, split or file) -> rows``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlkit.config import build
from rlkit.data import Data
from rlkit.reading import located


def beside(folder: Path, **settings: Any) -> Data:
    """The section ``data`` of a configuration in that folder."""
    return build(Data, located(settings), folder)


DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer (without quotes) where "
    '$Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its own line after "Answer:".'
)


def math(problem: str, level: Any, subject: str, solution: str) -> dict[str, Any]:
    return {"problem": problem, "level": f"Level {level}", "type": subject, "solution": solution}


def dapo(question: str, answer: str, index: str) -> dict[str, Any]:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": DAPO.format(question), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def simplerl(question: str, answer: str) -> dict[str, Any]:
    return {
        "data_source": "simplelr/math",
        "prompt": [{"content": f"<|im_start|>user\n{question}", "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"answer": answer, "index": 0, "question": question, "split": "train"},
    }


TRIANGLE = (
    "In triangle $ABC$, $\\sin \\angle A = \\frac{4}{5}$ and $\\angle A < 90^\\circ$. Let $D$ be a point outside triangle $ABC$ such that "
    "$\\angle BAD = \\angle DAC$ and $\\angle BDC = 90^\\circ$. Find $AD$, given as $\\frac{a\\sqrt{b}}{c}$: what is $a+b+c$?"
)
MATH = "EleutherAI/hendrycks_math"
TABLES: dict[tuple[str, str | None, str], list[dict[str, Any]]] = {
    ("openai/gsm8k", "main", "train"): [
        {
            "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did Natalia sell "
            "altogether in April and May?",
            "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
        },
        {
            "question": "A shop sells 120 books at $9 each. How much does it take in?",
            "answer": "120*9 = <<120*9=1080>>1080\n#### 1,080",
        },
    ],
    ("openai/gsm8k", "main", "test"): [
        {
            "question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?",
            "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total amount of fabric is 2+1=<<2+1=3>>3 bolts of fabric\n#### 3",
        }
    ],
    **{
        (MATH, subject, split): rows
        for split in ("train", "test")
        for subject, rows in {
            "algebra": [
                math("What is the value of $x$ if $4x = 2$?", 2, "Algebra", "Divide: $x = \\boxed{\\frac{1}{2}}$."),
                math("Evaluate $\\lfloor 3.2 \\rfloor$.", 5, "Algebra", "It is $\\boxed 3$."),
                math("Find $a+b$ if the function is continuous.", 3, "Algebra", "So $a+b = -3+3 = \\boxed{0}$."),
                math("Which one?", "?", "Algebra", "This one: $\\boxed{1}$."),
            ],
            "geometry": [
                math("What is the area of a unit square?", 1, "Geometry", "Clearly $\\boxed{1}$."),
                math("How many sides has a hexagon?", 3, "Geometry", "There are $\\boxed{6}$."),
            ],
            "precalculus": [math("What is $\\cos 0$?", 2, "Precalculus", "It is $\\boxed{1}$.")],
            **{
                s: [math("What is the value of $x$ if $4x = 2$?", 2, "Algebra", "no box")]
                for s in ("counting_and_probability", "intermediate_algebra", "number_theory", "prealgebra")
            },
        }.items()
    },
    ("HuggingFaceH4/MATH-500", None, "test"): [
        {
            "problem": "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates.",
            "solution": "We have ...",
            "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        },
        {
            "problem": "If $f(x) = \\frac{3x-2}{x-2}$, what is the value of $f(-2) +f(-1)+f(0)$?",
            "solution": "...",
            "answer": "\\frac{14}{3}",
            "subject": "Algebra",
            "level": 3,
            "unique_id": "test/algebra/2584.json",
        },
    ],
    ("HuggingFaceH4/aime_2024", None, "train"): [
        {
            "id": 60,
            "problem": "Every morning Aya goes for a $9$-kilometer-long walk and stops at a coffee shop afterwards.",
            "solution": "... \\boxed{204}",
            "answer": "204",
            "url": "",
            "year": "2024",
        }
    ],
    ("math-ai/aime25", None, "test"): [
        {"problem": "Find the angle that is asked for, in degrees.", "answer": "336^\\circ", "id": "14"}
    ],
    ("math-ai/amc23", None, "test"): [
        {"id": 0, "question": "Cities $A$ and $B$ are $45$ miles apart.", "answer": "27.0", "url": ""}
    ],
    ("MathArena/hmmt_feb_2025", None, "train"): [
        {
            "problem_idx": 1,
            "problem": "Compute the sum of the positive divisors.",
            "answer": "103",
            "problem_type": ["Number Theory"],
        }
    ],
    ("MathArena/brumo_2025", None, "train"): [
        {
            "problem_idx": 1,
            "problem": "One hundred concentric circles are drawn.",
            "answer": "$\\frac{1}{10}$",
            "problem_type": ["Geometry"],
        }
    ],
    ("math-ai/minervamath", None, "test"): [
        {"question": "Each of the two Magellan telescopes has a diameter of $6.5 \\mathrm{~m}$.", "answer": "31e36"}
    ],
    ("math-ai/olympiadbench", None, "test"): [
        {
            "id": 1606,
            "question": "Find all integers $x$ with $x^2 = x + 6$.",
            "solution": ["..."],
            "final_answer": ["$3$", "$-2$"],
            "context": None,
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
            "subfield": "Number Theory",
        }
    ],
    ("BytedTsinghua-SIA/DAPO-Math-17k", None, "train"): [
        dapo(TRIANGLE, "34", "a"),
        dapo("Find the remainder of $5$ by $10$.", "5", "b"),
    ]
    + [dapo(TRIANGLE, "34", "a")] * 3
    + [dapo("Find the remainder of $5$ by $10$. ", "5", "b")] * 2,
    ("open-r1/DAPO-Math-17k-Processed", "en", "train"): [
        {
            "prompt": TRIANGLE,
            "solution": "34",
            "data_source": "math_dapo",
            "source_prompt": [{"content": DAPO.format(TRIANGLE), "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "34", "style": "rule"},
            "extra_info": {"index": "a"},
        },
        {
            "prompt": "Find the remainder of $5$ by $10$.",
            "solution": "5",
            "data_source": "math_dapo",
            "source_prompt": [{"content": "", "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "5", "style": "rule"},
            "extra_info": {"index": "b"},
        },
    ],
    ("hkust-nlp/SimpleRL-Zoo-Data", None, "simplelr_qwen_level3to5/train.parquet"): [
        simplerl("What is the smallest positive solution of $\\cos x = 0$?", "\\frac{\\pi}{2}"),
        simplerl("A question of level 5.", ""),
    ],
    ("hkust-nlp/SimpleRL-Zoo-Data", None, "simplelr_qwen_level1to4/train.parquet"): [
        simplerl("What is $2 + 3$?", "5"),
        simplerl("What is $2 \\cdot 3$?", "6"),
    ],
    ("hkust-nlp/SimpleRL-Zoo-Data", None, "simplelr_qwen_gsm8k_level1/train.parquet"): [
        simplerl("Tom has 3 apples and eats 1.", "2")
    ],
    ("agentica-org/DeepScaleR-Preview-Dataset", None, "train"): [
        {
            "problem": "The operation $\\otimes$ is defined by $a \\otimes b = \\frac{a^2}{b}$.",
            "answer": "-\\frac{2}{3}",
            "solution": "...",
        }
    ],
    ("POLARIS-Project/Polaris-Dataset-53K", None, "train"): [
        {"problem": "How many positive divisors has $60$?", "answer": "12", "difficulty": "3/8"},
        {"problem": "What is $7 \\cdot 8$?", "answer": "56", "difficulty": "7/8"},
    ],
}
