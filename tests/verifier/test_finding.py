"""Where a response says its answer: as chat models of several families write it, and what is no answer."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.verifier import closing, finding, passages
from rlkit.verifier.algebra import MAX_TEXT, MAX_WORK, WORK
from rlkit.verifier.finding import EXTRACT, extract_answer
from rlkit.verifier.verify import verify

# response, reference, whether it counts by default
FOUND = [
    # nothing but the answer
    ("Yes", "yes", 1),
    ("No.", "No", 1),
    ("Yes", "no", 0),
    ("<think>No or yes?</think>\nTrue", "true", 1),
    ("no real solutions", "No real solutions", 1),
    ("Paris", "Paris", 1),
    ("Paris", "Rome", 0),
    ("January 5", "January 5", 1),
    ("January 5", "January 6", 0),
    ("AB_{16}", "AB_{16}", 1),
    (r"\log_2 8", "3", 1),
    (r"\log_2 8", "8", 0),
    ("5!", "120", 1),
    ("infinity", r"\infty", 1),
    ("minus infinity", r"\infty", 0),
    (r"\boxed{No}", "no", 1),
    ("Yes, because no prime divides it.", "no", 0),
    # a formula in no box
    (r"the probability is $\frac{3}{8}$.", r"\frac{3}{8}", 1),
    (r"the probability is $\frac{3}{8}$.", "8", 0),
    (r"the probability is \frac{3}{8}.", r"\frac{3}{8}", 1),
    (r"the probability is \(\frac{3}{8}\).", r"\frac{3}{8}", 1),
    ("Therefore,\n\\[\nx = \\frac{3}{8}.\n\\]", r"\frac{3}{8}", 1),
    ("Therefore,\n$$\nx = \\frac{3}{8}\n$$\n", r"\frac{3}{8}", 1),
    (r"Therefore, \(x = \frac{3}{8}\).", r"\frac{3}{8}", 1),
    (r"so it is \sqrt{2} + 1 in the end", r"1+\sqrt2", 1),
    ("We get $x = 3$ or $x = 5$.", "3, 5", 1),
    ("We get $x = 3$ or $x = 5$.", "5", 0),
    ("The solutions are $2$ and $3$.", "2, 3", 1),
    ("The solutions are $2$ and $3$.", "3", 0),
    ("The maximum is $7$, attained when $x = 2$.", "7", 1),
    ("The maximum is $7$, attained when $x = 2$.", "2", 0),
    ("The sum is $S_n = n^2$ for all $n \\ge 1$.", "n^2", 1),
    ("Hence there are $12$ ways, where $k = 4$.", "12", 1),
    ("So it equals $5$, not $6$.", "5", 1),
    ("So it equals $5$, not $6$.", "6", 0),
    ("It must be at least $5$.", "5", 0),
    ("It lies between $5$ and $7$.", "7", 0),
    ("So $3 + 4 = 7$.", "7", 1),
    ("So $x = 3 + 4 = 7$.", "7", 1),
    ("So $x = 3 + 4 = 7$.", "4", 0),
    ("The length is $5$ meters.", r"5\text{ m}", 1),
    ("The length is $5$ meters.", r"5\text{ cm}", 0),
    ("Therefore the area is $5$ square meters.", r"5\text{ m}^2", 1),
    ("Therefore we need $5$ in total.", "5", 1),
    ("This gives $x=5$.\n\nCheck: $2(5)+3 = 13$ ✓", "5", 1),
    ("This gives $x=5$.\n\nLet's verify: $2 \\cdot 5 = 10$. It holds.", "5", 1),
    ("Is it $5$?", "5", 0),
    ("Let $x$ be the number. I do not know.", "x", 0),
    (
        r"Hence the matrix is \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}.",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        1,
    ),
    ("Therefore, the interval is $\\left[2, 5\\right)$. $\\blacksquare$", "[2,5)", 1),
    ("So $x = 5$ □", "5", 1),
    ("So $x = 5$ \U0001f389\U0001f389", "5", 1),
    ("We get $12$.\n\nI hope this helps! Let me know if you have questions.", "12", 1),
    # the last words of a final answer
    ("Final answer: The total number of eggs is 12.", "12", 1),
    ("Final answer: There are 5 boxes of 3, so 15 apples in total.", "15", 1),
    ("Final answer: There are 5 boxes of 3, so 15 apples in total.", "3", 0),
    ("Final Answer: The final answer is $24$. I hope it is correct.", "24", 1),
    ("Final answer: the day is Tuesday.", r"\text{Tuesday}", 1),
    ("Final answer: the number is even", r"\text{even}", 1),
    ("Final answer: We are done, so the ratio is 3:4", "3:4", 1),
    ("Final answer: he arrives at 4:51.", "4:51", 1),
    ("**Final Answer:** The train needs **2.5 hours**.", "2.5", 1),
    ("Final answer: it is not 5", "5", 0),
    ("Final answer: 5, maybe", "5", 0),
    ("Final answer: either 5 or 6", "6", 0),
    ("Final answer: less than 5", "5", 0),
    ("The correct answer is (B) $\\frac{3}{8}$.", "B", 1),
    ("The correct answer is (B) $\\frac{3}{8}$.", r"\frac38", 1),
    ("The correct option is C.", "C", 1),
    ("**Answer: C**", "C", 1),
    ("Answer: (D)", "D", 1),
    ("The answer is D: 12", "D", 1),
    ("## Answer\n\n42", "42", 1),
    ("### Final Answer:\n\n\\[\n42\n\\]\n", "42", 1),
    ("**Final Answer**\n\n$42$", "42", 1),
    ("The answer should be 42.", "42", 1),
    ("Answer: 42 (question 3 asked for the sum)", "42", 1),
    ("Answer: $x = 42$ because of $y = 7$", "42", 1),
    ("The answer is 42.\n\n(The question was number 3 of 5.)", "42", 1),
    ("The answer is 42. I hope this answer is helpful!", "42", 1),
    ("The answer is approximately 3.14.", "3.14", 1),
    ("Answer: ≈ 3.14", "3.14", 1),
    ("| quantity | value |\n|---|---|\n| rows | 7 |\n| **Answer** | **42** |", "42", 1),
    # other languages
    ("La réponse est 42.", "42", 1),
    ("Ответ: 42.", "42", 1),
    ("因此，答案是 $\\frac{1}{2}$。", r"\frac12", 1),
    ("答案：42", "42", 1),
    ("Die Antwort ist 42.", "42", 1),
    ("La respuesta final es $42$.", "42", 1),
    ("A resposta é 42.", "42", 1),
    ("答えは 42 です。", "42", 1),
    ("정답은 42입니다.", "42", 1),
    # bold
    ("So we have **42**", "42", 1),
    ("**42**", "42", 1),
    ("It costs **$42**.", "42", 1),
    ("The result is **\\(\\frac{3}{8}\\)**.", r"\frac38", 1),
    ("**Conclusion**\n\nThe day is **Tuesday**.", "Tuesday", 1),
    ("The result is **42**.\n\n**Step-by-step:** see above.", "42", 1),
    ("**2** cannot be right.", "3", 0),
    # chat tokens
    ("Answer: 42<|im_end|>", "42", 1),
    ("Answer: 42</s>", "42", 1),
    ("Answer: 42<|eot_id|>", "42", 1),
    ("Answer: 42<end_of_turn>", "42", 1),
    ("Answer: 42 <|endoftext|>", "42", 1),
    ("Answer: 42<\uff5cend\u2581of\u2581sentence\uff5c>", "42", 1),
    ("$42$<|im_end|>\n", "42", 1),
    ("#### 42<|eot_id|>", "42", 1),
    ("Answer: 42<|im_end|>\n<|im_start|>user\nAnd 3+4?<|im_end|>\n<|im_start|>assistant\nAnswer: 7", "42", 1),
    (
        "<|channel|>analysis<|message|>Maybe \\boxed{7}<|end|><|start|>assistant<|channel|>final<|message|>It is **42**.<|return|>",
        "42",
        1,
    ),
    # boxes
    (r"\boxed 5", "5", 1),
    (r"$\boxed 5$", "5", 1),
    (r"\boxed -5.", "-5", 1),
    (r"$\boxed\frac{3}{8}$", r"\frac38", 1),
    (r"\boxed{The answer is 5}", "5", 1),
    (r"\boxed{\text{The answer is } 5}", "5", 1),
    (r"\boxed{\text{The answer is 5}}", "5", 1),
    (r"\boxed{\text{Area} = 5}", "5", 1),
    (r"\boxed{\text{Total: } 5}", "5", 1),
    (r"\boxed{\text{Answer: } \frac{3}{8}}", r"\frac38", 1),
    (r"\boxed{Answer: 5}", "5", 1),
    (r"\boxed{\text{not } 5}", "5", 0),
    (r"\boxed{not 5}", "5", 0),
    (r"\boxed{\text{either 5 or 6}}", "5", 0),
    (r"\boxed{\text{October 30}}", "30", 0),
    (r"\boxed{\text{October 30}}", r"\text{October 30}", 1),
    (r"so $x=7$, hence \boxed{5}", "7", 0),
    ("So the number is 132 in base 5.", "132_5", 1),
    ("So the number is 132 in base 5.", "5", 0),
    # what stands behind a value
    ("So 15 is the answer.", "15", 1),
    ("So 15 is not the answer.", "15", 0),
    ("I got 15 as the final answer.", "15", 1),
    ("I don't think the answer is 15.", "15", 0),
    ("The total is 36 (24 apples and 12 pears).", "36", 1),
    ("The total is 36 (24 apples and 12 pears).", "12", 0),
    ("It takes 2/2=1 bolt of one, so the total is 2+1=3 bolts.", "3", 1),
    ("The area is 53 cm^2.", r"53\text{ cm}^2", 1),
    ("The area is 53 cm^2.", "2", 0),
    # fences and tables
    ("The final answer is:\n\n```\n42\n```", "42", 1),
    ("We count.\n\n```python\nprint(42)\n```", "42", 0),
    ("| Question | Answer |\n|---|---|\n| 1 | 42 |", "42", 1),
    ("42", "42", 1),
    ("(B)", "B", 1),
    ("Option B is correct.", "B", 1),
    # languages
    ("Die Antwort ist 2,5.", "2.5", 1),
    ("Ответ: 0,75", "0.75", 1),
    ("The answer is 2,5.", "2.5", 0),
    ("Die Antwort ist 2,5.", "25", 0),
    (r"$\boxed{2{,}5}$", "2.5", 1),
    # ways to write numbers
    (r"So it is ${8 \over 3}$.", r"\frac83", 1),
    (r"\boxed{9:24\text{ p.m.}}", r"9:24\text{ a.m.}", 0),
    (r"\boxed{9:24 PM}", r"9:24\text{ p.m.}", 1),
    ("The total is \u201347.", "-47", 1),
    ("The total is \u201347.", "47", 0),
    ("The answer is not 5 but 6.", "6", 1),
    ("The answer is not 5 but 6.", "5", 0),
    ("The answer is 1 500.", "1500", 1),
    ("The answer is 1 500 euros.", "1500", 1),
    ("So we need $x = 1\\ 500$.", "1500", 1),
    ("Answer: 1\u202f234\u202f567", "1234567", 1),
    ("Answer: 1'500", "1500", 1),
    ("So the total is 1,500.", "1500", 1),
    ("Answer: 1 500", "500", 0),
    ("Answer: 0.142857142857", r"\frac17", 1),
    ("Answer: 0.142857142858", r"\frac17", 0),
    ("Answer: 0.6666666666666666", r"\frac23", 1),
    ("Answer: 0.14", r"\frac17", 0),
    ("Answer: 0.333", r"\frac13", 0),
    ("Answer: 0.4999999999", r"\frac12", 0),
    ("Answer: 1.41421356237", r"\sqrt2", 1),
    (r"\boxed{0.142857142857}", r"\frac17", 0),
    ("Answer: ¾", "3/4", 1),
    ("Answer: 3½", "7/2", 1),
    ("Therefore it is −3.", "-3", 1),
    ("Thus, the angle is 30°.", "30", 1),
    ("Answer: 2√3", r"\sqrt{12}", 1),
    ("So the share is 45%.", r"45\%", 1),
    ("So the share is 45 percent.", r"45\%", 1),
    ("So the price is $18.90.", "18.90", 1),
    ("So it costs $18.90 and not $20.", "18.90", 1),
    # conclusions
    ("So, Natalia sold 72 clips altogether.", "72", 1),
    ("Therefore, the total is 72.", "72", 1),
    ("The required value is 42.", "42", 1),
    ("it makes 7 and then 12 eggs", "12", 0),
    ("I think that 42 people came.", "42", 0),
]

# what is near an answer, and is another one or none
NEAR = [
    ("Answer: 12 or 13", "13", 0),
    ("Answer: 5–7", "7", 0),
    ("Answer: 5 to 7", "7", 0),
    ("Answer: x = 3, y = 4", "4", 0),
    ("Answer: 3 R 2", "2", 0),
    ("The answer is 42, or possibly 43.", "43", 0),
    ("The answer is 42, or possibly 43.", "42", 0),
    ("So the total is 41.9, which is about 42.", "42", 0),
    ("The answer is about 42", "42", 1),
    ("I could not solve it. My guess would be 7 or 8.", "8", 0),
    ("So she has 5 apples and 7 pears.", "7", 0),
    ("Therefore, 3 of the 7 are red.", "7", 0),
    ("Thus there are 7 boys and 8 girls.", "8", 0),
    ("So $a = 3$ and $b = 4$.", "4", 0),
    ("So $a = 3$ and $b = 4$.", "3", 0),
    ("We need $x$ such that $x^2 = 16$.", "16", 0),
    ("So the remainder when $2^{10}$ is divided by $7$", "7", 0),
    ("The remainder when dividing by $7$ is $2$.", "2", 1),
    ("The remainder is $2$ when dividing by $7$.", "2", 1),
    ("The remainder is $2$ upon division by $7$.", "7", 0),
    ("Hence $n$ is divisible by $12$.", "12", 0),
    ("Therefore $5 < x < 7$.", "7", 0),
    ("Therefore $x > 5$.", "5", 0),
    (r"So $x \ne 5$.", "5", 0),
    (r"So $x \approx 5$.", "5", 1),
    (r"Thus $\frac{1}{2} + \frac{1}{3} = \frac{5}{6}$", r"\frac56", 1),
    (r"Thus $12 = 3 \cdot 4$.", "12", 1),
    ("The final answer is $24$.  (Not $25$.)", "25", 0),
    ("Answer: 24 (25 would be wrong)", "25", 0),
    ("So we get 1/2, i.e., 50%.", "50", 0),
    ("So 3 hours and 20 minutes", "20", 0),
    ("Therefore the ratio is 3:4.", "4", 0),
    ("So it is 10:30 pm.", "30", 0),
    ("So the date is May 5.", "5", 0),
    ("Thus, by Theorem 3.", "3", 0),
    ("So the 3rd one.", "3", 0),
    ("Therefore the final balance is -$5.", "-5", 1),
    ("Therefore the change is −5.", "5", 0),
    ("The answer is not 5.", "5", 0),
    ("The answer isn't 5.", "5", 0),
    ("The answer can't be 5.", "5", 0),
    ("The answer is 5 more than 7.", "7", 0),
    ("The answer is 5 more than 7.", "5", 0),
    ("The answer is twice 7", "7", 0),
    ("The answer is half of 7.", "7", 0),
    ("The answer is 7 squared.", "7", 0),
    ("The answer is the square of 7.", "7", 0),
    ("The answer is the sum of 3 and 7.", "7", 0),
    ("The answer is 3 plus 7", "7", 0),
    ("Answer: (x+1)(x+2) = 0", "2", 0),
    ("Answer: x^2 - 4", "4", 0),
    ("Answer: 2x", "2", 0),
    ("So the answer is 2n.", "2", 0),
    ("Therefore it is 3x^2.", "3", 0),
    ("So the answer is 12 dozen.", "12", 0),
    ("So the answer is 5 million.", "5", 0),
    ("So the answer is 5 million.", "5000000", 1),
    ("So there are 5 thousand.", "5", 0),
    ("Answer: 0.5 percent", "0.5", 1),
    ("Answer: $-5$", "5", 0),
    ("Answer: minus 5", "5", 0),
    ("Answer: negative 5", "5", 0),
    ("So it is minus 5.", "5", 0),
    ("The answer is between 5 and 7.", "7", 0),
    ("Answer: 5 < x < 7", "7", 0),
    ("Answer: 12 remainder 5", "5", 0),
    ("Answer: 5e3", "5", 0),
    ("Answer: 5^3", "5", 0),
    ("Answer: 5!", "5", 0),
    ("Answer: 1.5.2", "2", 0),
    ("Answer: 12-05-2020", "2020", 0),
    ("Answer: A5", "5", 0),
    ("Answer: 5 or more", "5", 0),
    ("Answer: 5+", "5", 0),
    ("Answer: >5", "5", 0),
    ("Answer: <5", "5", 0),
    ("Answer: ~5", "5", 1),
    ("Answer: ±5", "5", 0),
    ("**5** apples, **7** pears", "7", 0),
    ("So **5** apples and **7** pears", "7", 0),
    ("We get 12 by adding 5 and 7.", "7", 0),
    ("So we multiply by 7.", "7", 0),
    ("Therefore we must divide by 7.", "7", 0),
    ("So I start with 7.", "7", 0),
    ("So 20% of 50", "50", 0),
    ("So 7 is a factor of 21.", "21", 0),
    ("Therefore, it takes them 5 days to build 7 walls.", "7", 0),
    ("So the answer lies in $[2, 5]$.", "5", 0),
    (r"The answer is $2 \cdot 5$.", "5", 0),
    ("The answer is $5_{7}$", "7", 0),
    ("The answer is $x_7$", "7", 0),
    (r"\boxed{5, 7}", "7", 0),
    (r"\boxed{5} \neq \boxed{7}", "5", 0),
    (r"\boxed{x = 5 \text{ or } 7}", "7", 0),
    (r"\boxed{\text{less than } 5}", "5", 0),
    (r"\boxed{\text{at least 5}}", "5", 0),
    (r"\boxed{\text{minus } 5}", "5", 0),
    (r"\boxed{5 \text{ (wrong)}}", "5", 0),
    (r"\boxed{\text{half of } 5}", "5", 0),
    ("Answer: There is no solution, since $5 = 7$.", "7", 0),
    ("I don't know the answer: $7$?", "7", 0),
    ("Final answer: I am not sure, but perhaps 7", "7", 0),
    ("Final answer: undefined, since we divide by 0", "0", 0),
    ("Answer: none of the 4", "4", 0),
    ("Answer: neither 3 nor 4", "4", 0),
    ("Final answer: all but 4", "4", 0),
    ("The answer is everything except 4.", "4", 0),
    ("Answer: over 4", "4", 0),
    ("Answer: exceeds 4", "4", 0),
    ("Answer: 4 less than 9", "9", 0),
    ("Answer: almost 4", "4", 0),
    ("Answer: -(4)", "4", 0),
    ("Answer: 1/4", "4", 0),
    ("Answer: one over 4", "4", 0),
    ("Answer: 3 over 4", "4", 0),
    ("Answer: 3 divided by 4", "4", 0),
    ("Answer: log 4", "4", 0),
    ("Answer: root 4", "4", 0),
    ("Answer: square root of 4", "4", 0),
    ("Answer: 3 out of 4", "4", 0),
    ("Answer: 3 in 4", "4", 0),
    ("Answer: 3 by 4", "4", 0),
    ("Answer: 3 x 4", "4", 0),
    ("Answer: 3 times 4", "4", 0),
    ("Answer: 3 choose 4", "4", 0),
    ("Answer: 3 mod 4", "4", 0),
    ("Answer: 3 per 4", "4", 0),
    ("Answer: 3 hundred", "3", 0),
]

# a question that is repeated: what it asks for, or the last that it tells
REPEATED = [
    (r"Simplify $\sqrt{242}$.", r"11\sqrt{2}"),
    ("Simplify\n\\[\\frac{6}{8}\\]", r"\frac{3}{4}"),
    (r"Compute: $7 \cdot 8$. Express your answer as an integer.", "56"),
    (r"Find the value of $\log_2 8$.", "3"),
    (r"Write $\frac{3}{20}$ as a decimal.", "0.15"),
    (r"Let $x = 5$.", "5"),
    ("If $x$ is $5$", "5"),
    ("Each rose needs 1 pound. Each sunflower needs 3 pounds.", "3"),
    ("He reads a book of 200 pages. Mike plans to read 10 pages a day.", "10"),
    ("A toy car costs $12. He already has $4 savings. How much does he need?", "4"),
]
WORKED = [
    (r"Simplify $\frac{6}{8}$ to get $\frac{3}{4}$.", r"\frac{3}{4}"),
    (r"Compute $7 \cdot 8 = 56$.", "56"),
    (r"If you add them, what remains is $5$.", "5"),
    ("Two of 5 pounds make 2 * 5 = 10. Mike plans to read 10 pages a day.", "10"),
    ("It takes 5 hours.", "5"),
]

# a text, and its last number or formula
NUMBERS = [
    ("it makes 7 and then 12 eggs", "12"),
    ("the probability is $\\frac{3}{8}$.", r"\frac{3}{8}"),
    ("72 clips, see x2", "72"),
    ("72 litres of H2O", "72 litres"),
    ("72 for the 3rd time", "72"),
    ("72 in a 2-step solution", "72"),
    ("72, as in step 3", "72"),
    ("72, by equation (4)", "72"),
    ("72 of CO2 and x_1", "72"),
    ("72 with GPT4", "72"),
    ("72 in a 3x3 grid", "72"),
    ("they pay $72.", "$72"),
    ("it is 72.50 in all", "72.50"),
    ("it is 1,234 in all", "1,234"),
    ("it is -3", "-3"),
    ("he has 10-3 = 7 left", "7"),
    ("so 20 * 3 = 60 - 5 = 55 apples", "55"),
    ("it is 5cm long", "5 cm"),
    ("it is 3/4 of it", "3/4"),
    ("1. First.\n2. It is 72.\n3. Done.", "72"),
    ("no number here", None),
    ("the 3rd x2", None),
]


@pytest.mark.parametrize(("response", "gold", "right"), FOUND)
def test_an_answer_is_found_where_models_write_it(response: str, gold: str, right: int) -> None:
    verdict = verify(response, gold)
    assert verdict.correct == bool(right), verdict


# a quantity in several units, ratios, and what real models write around a value
WRITTEN = [
    ("It took 3 hours and 20 minutes.", "3 hours and 20 minutes", 1),
    ("It took 3 hours and 20 minutes.", "200 minutes", 1),
    ("It took 3 hours and 20 minutes.", "3 hours", 0),
    ("It took 3 hours and 20 minutes.", "20 minutes", 0),
    ("It took 3 hours and 20 minutes.", "3 hours and 25 minutes", 0),
    ("She needs $3$ hours and $20$ minutes in total.", "3 h 20 min", 1),
    ("The plank is 2 m and 35 cm long.", "235 cm", 1),
    ("The lengths are 3 m, 50 cm.", "350 cm", 0),
    ("He waited 90 seconds and 5 minutes.", "5", 0),
    ("The total is 5 dollars and 25 cents.", "$5.25", 1),
    ("The total is 5 dollars and 25 cents.", "525", 0),
    ("Therefore it lasts 1 day, 2 hours and 30 minutes.", "1590 minutes", 1),
    ("Answer: two and a half hours", "2.5", 1),
    ("The ratio of boys to girls is 3:4.", r"\frac{3}{4}", 1),
    ("The ratio of boys to girls is 3 to 4.", "3:4", 1),
    (r"So the ratio is $\frac{3}{4}$.", "3:4", 1),
    (r"So the ratio is $\frac{4}{3}$.", "3:4", 0),
    ("The answer is 3 to 4 hours.", "3:4", 0),
    ("It is between 3 to 4", "3:4", 0),
    ("Ans. 42", "42", 1),
    ("Ans - 42", "42", 1),
    ("So the answer is 5, not 6.", "5", 1),
    ("So the answer is 5, not 6.", "6", 0),
    ("So the answer is 5, not more than 6.", "6", 0),
    (r"The probability is $\frac{1}{6}$, or about 16.7%.", r"\frac16", 1),
    (r"The answer is $5$ or $6$.", "5", 0),
]


@pytest.mark.parametrize(("response", "gold", "right"), WRITTEN)
def test_quantities_and_ratios_are_one_value(response: str, gold: str, right: int) -> None:
    assert verify(response, gold).correct == bool(right)


@pytest.mark.parametrize(("response", "gold", "right"), NEAR)
def test_a_number_beside_the_answer_is_not_taken_for_it(response: str, gold: str, right: int) -> None:
    verdict = verify(response, gold)
    assert verdict.correct == bool(right), verdict


def test_a_question_that_is_repeated_is_no_answer() -> None:
    assert [r for r, gold in REPEATED if verify(r, gold).correct] == []
    assert [r for r, gold in WORKED if not verify(r, gold).correct] == []


@pytest.mark.parametrize(("response", "want"), NUMBERS)
def test_a_number_stands_on_its_own(response: str, want: str | None) -> None:
    assert extract_answer(response, ("number",)) == want


@pytest.fixture
def graded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """The benchmark's modules by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module
    for name in ("graded", "graded_sets"):
        sys.modules.pop(name, None)


def test_graded_answers_in_the_styles_of_chat_models(graded: Callable[[str], Any]) -> None:
    """The generic half of the benchmark (no data set): nearly all are decided rightly, and no wrong one is accepted."""
    cases = list(graded("graded").cases(seed=5, each=1))
    missed = [c for c in cases if verify(c.text, c.gold).correct != c.right]
    assert len(cases) > 1500 and len(missed) <= 0.008 * len(cases), missed
    assert [c for c in missed if not c.right] == []


def test_four_sets_of_graded_answers(graded: Callable[[str], Any]) -> None:
    """Of the few that are missed, each stands for something that is left open; two texts are accepted that hold one number and state nothing."""
    cases = list(graded("graded_sets").cases(seed=5, each=2))
    missed = [c for c in cases if verify(c.text, c.gold).correct != c.right]
    right = sum(c.right for c in cases)
    assert right > 600 and len(cases) - right > 1400 and len(missed) <= 0.008 * len(cases), missed
    assert {c.text for c in missed if not c.right} <= {"Each year has 12 months.", "def f(x):\n    return 8\n"}


def test_an_answer_that_was_cut_off_closes_nothing() -> None:
    for text in (r"So the area is $12$", r"so it is \frac{12", "Therefore, the total is 12", r"so $\boxed{12"):
        assert verify(text, "12", finish="length").reason == "truncated", text
    assert verify("Then 7 and 12", "12", finish="length", extract=("number",)).extracted == "7"


def test_what_is_not_worked_out_is_no_answer() -> None:
    for text in (r"\sum_{k=1}^{100} k", r"\int_0^1 x\,dx", r"\lim_{x\to 0} x", r"\det A"):
        assert verify(rf"\boxed{{{text}}}", "5050").reason == "unreadable"


PIECES = [
    r"\frac{",
    r"\sqrt{",
    r"\sqrt[3]{",
    r"\boxed{",
    r"\left(",
    r"\right)",
    r"\text{",
    r"}",
    r"{",
    r"(",
    r")",
    r"[",
    r"]",
    r"^{60}",
    r"^{",
    r"_{1}",
    r"$",
    r"$$",
    r"\(",
    r"\)",
    r"\[",
    r"\]",
    r"**",
    r"!",
    r"|",
    r"+",
    r"-",
    r"*",
    r"/",
    r"=",
    r",",
    r".",
    r";",
    r":",
    r"&",
    r"\\",
    r"\sin",
    r"\log",
    r"\binom{9}{4}",
    r"\pm",
    r"\infty",
    r"\pi",
    r"e",
    r"i",
    r"x",
    r"y",
    r"0",
    r"1",
    r"2",
    r"99999",
    r"0.5",
    r"1,000",
    r"10^{99}",
    r"400!",
    r"x2",
    r"3rd",
    r"2-step",
    r"not",
    r"is",
    r"So",
    r"Answer:",
    r"####",
    r"<answer>",
    r"</answer>",
    r"</think>",
    r"<|im_end|>",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\cup",
    r"(x+y+1)^{20}",
    r"(1,2]",
    r"1e99",
    r"½",
    r"√2",
    r"−",
    r"答案是",
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=25).map(lambda p: "5 " + "".join(p)),
    st.sampled_from([EXTRACT, (*EXTRACT, "number"), ("whole",)]),
)
def test_no_text_breaks_the_verifier_or_makes_it_compute_much(
    response: str, gold: str, extract: tuple[str, ...]
) -> None:
    before = WORK.total
    # No solution, but an answer.
    bare, gold = (re.sub(r"\\boxed\{|####|Answer:", "", text) for text in (response, gold))
    verdict = verify(response, gold, extract=extract)
    assert verdict.reason in ("equal", "different", "no_answer", "unreadable", "refused")
    assert verify(rf"\boxed{{{response}}}", "5 " + bare).reason in (
        "equal",
        "different",
        "unreadable",
        "refused",
        "no_answer",
    )
    assert WORK.total - before <= 12 * MAX_WORK


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (r"\sin(((x+y+400!)^{5}))", "1"),
        (r"\binom{|\sqrt{\ln(x)}|}{\lfloor ((99999)^{1000}) \rfloor}", "x"),
        (r"(\frac{x}{2}+\sqrt{99999}+\tan(400!))^{60}", r"(\frac{x}{2}+\sqrt{99999}+\tan(400!))^{60}+\sin(1)"),
        (r"(((\binom{7!}{2+7!}+\tan(\tan(a_1))+\pi)^{20})!)!", "5"),
        ("(x+y+z+1)^{12}(x-y-z+1)^{12}", "(x+y+z+1)^{12}(x-y-z+2)^{12}"),
    ],
)
def test_large_algebra_is_given_up_not_computed(text: str, other: str) -> None:
    """Of these, some took seconds, and some ended in an exception of Python's for numbers of more than 4,300 digits."""
    before = WORK.total
    assert not verify(rf"\boxed{{{text}}}", other).correct
    assert WORK.total - before <= 6 * MAX_WORK


@pytest.mark.parametrize(
    "piece",
    [
        "$",
        "\\[",
        "\\(",
        "[",
        "$ [ ",
        "answer is ",
        "So, ",
        "5 meters ",
        "check 5. ",
        "- - ",
        "**",
        "1 000 ",
        "x ",
        "\\boxed{5 ",
    ],
)
def test_long_texts_are_searched_in_one_pass_and_their_end_in_detail(
    piece: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sentences are taken apart in the last ``TAIL`` characters only, whatever the length of the text."""
    seen: list[int] = []
    reading = passages.Passage.__init__

    def counted(self: passages.Passage, text: str) -> None:
        seen.append(len(text))
        reading(self, text)

    monkeypatch.setattr(passages.Passage, "__init__", counted)
    verify(piece * 20_000, "7", extract=(*EXTRACT, "number"))
    assert sum(seen) <= 8 * closing.TAIL + 4 * finding._TRIES * MAX_TEXT
