"""The math verifier: what is the same answer and what is not, what a response commits to, and that nothing can hang it."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlkit.cli import main
from rlkit.commands.audit import audit, read_responses
from rlkit.rewards import RewardSpec, Scorer
from rlkit.rewards.math import extract_answer, gold_against_itself, last_boxed, reward, same_answer, verify, vote_key
from rlkit.types import Prompt, Rollout

EXAMPLES = Path(__file__).parents[1] / "rewards" / "examples.py"

# response, reference, whether it counts in the modes strict and permissive
SAME = [
    ("0.5", "1/2", 1, 1),
    ("0.33", "1/3", 0, 0),
    ("0.333", "1/3", 0, 1),
    (r"\frac12", "1/2", 1, 1),
    (r"\dfrac{1}{2}", r"\frac12", 1, 1),
    (r"1\frac{3}{4}", "7/4", 1, 1),
    ("1 3/4", "7/4", 1, 1),
    ("13/4", "1 3/4", 0, 0),
    ("1 3/4", "13/4", 0, 0),
    (r"1.2\times10^3", "1200", 1, 1),
    (r"1.2 \cdot 10^{3}", "1200", 1, 1),
    ("1.2e3", "1200", 1, 1),
    ("1,234", "1234", 1, 1),
    ("1{,}234", "1234", 1, 1),
    (r"1,\!234", "1234", 1, 1),
    (r"10\,000", "10000", 1, 1),
    ("(1,234)", "(1,234)", 1, 1),
    ("(1, 234)", "(1,234)", 1, 1),
    ("(1,234)", "1234", 0, 0),
    ("1234", "(1,234)", 0, 0),
    ("(1,2)", "(12)", 0, 0),
    ("1 or 2", "1", 0, 0),
    ("1, 2", "1", 0, 0),
    (r"1 \text{ or } 2", "1,2", 1, 1),
    ("2, 1", "1,2", 1, 1),
    (r"\{2,1\}", "1,2", 1, 1),
    (r"\{2,1\}", r"\{1,2\}", 1, 1),
    ("(2,1)", "(1,2)", 0, 0),
    ("(1,2)", "[1,2]", 0, 0),
    ("(1,2]", "[1,2)", 0, 0),
    ("1,1,2", "1,2", 0, 1),
    ("x=5", "5", 1, 1),
    ("5", "x=5", 1, 1),
    ("x=5", "y=5", 0, 1),
    ("y=2x+3", "2x+3", 1, 1),
    ("2x+3", "y=2x+3", 1, 1),
    ("2x-y+3=0", "y=2x+3", 1, 1),
    ("10x-14y+22z+8=0", "5x - 7y + 11z + 4 = 0", 1, 1),
    ("5x-7y+11z+5=0", "5x - 7y + 11z + 4 = 0", 0, 0),
    ("10 cm", r"10\text{ cm}", 1, 1),
    ("10", r"10\text{ cm}", 1, 1),
    (r"10\text{ m}", r"10\text{ cm}", 0, 0),
    (r"10 \text{ cm}", "10", 1, 1),
    (r"15\text{ cm}^2", r"15\mbox{ cm}^2", 1, 1),
    (r"15 \text{ square centimeters}", r"15\mbox{ cm}^2", 1, 1),
    ("15 cm", r"15\mbox{ cm}^2", 0, 0),
    ("864", r"864 \mbox{ inches}^2", 1, 1),
    (r"864 \text{ in}^2", r"864 \mbox{ inches}^2", 1, 1),
    ("60 minutes", "1 hour", 0, 1),
    ("30", r"30^\circ", 1, 1),
    (r"30^{\circ}", "30", 1, 1),
    ("30°", r"30^\circ", 1, 1),
    ("30 degrees", r"30^\circ", 1, 1),
    (r"31^\circ", r"30^\circ", 0, 0),
    (r"50\%", "50", 1, 1),
    ("50", r"50\%", 1, 1),
    ("0.5", r"50\%", 1, 1),
    (r"50\%", "0.5", 1, 1),
    ("0.5", "50", 0, 0),
    (r"\$18.90", "18.9", 1, 1),
    ("18.90", r"\$18.90", 1, 1),
    ("18.90 dollars", r"\$18.90", 1, 1),
    ("5 cents", r"\$5", 0, 0),
    (r"\$32,348", r"\$32,\!348", 1, 1),
    (r"\text{Tuesday}", "Tuesday", 1, 1),
    ("tuesday", r"\text{Tuesday}", 1, 1),
    ("Monday", r"\text{Tuesday}", 0, 0),
    ("(A)", "A", 1, 1),
    (r"\textbf{(A)}", "A", 1, 1),
    ("A", r"\text{(A)}", 1, 1),
    ("B", r"\text{(A)}", 0, 0),
    (r"\textbf{(B)}\ 12", "B", 1, 1),
    (r"\textbf{(B)}\ 12", "12", 1, 1),
    ("A and B", "A", 0, 0),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", 1, 1),
    (r"1-\sqrt{19}, 1+\sqrt{19}", r"1 \pm \sqrt{19}", 1, 1),
    (r"1+\sqrt{19}", r"1 \pm \sqrt{19}", 0, 0),
    (r"\{1+\sqrt5,1-\sqrt5,-2\}", r"\{1\pm\sqrt{5},-2\}", 1, 1),
    (r"2\sqrt3", r"\sqrt{12}", 1, 1),
    (r"2\sqrt3", r"2\sqrt5", 0, 0),
    ("3", r"\sqrt3", 0, 0),
    (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt{3}}", 1, 1),
    (r"2\pi", r"2 \pi", 1, 1),
    ("6.283", r"2\pi", 0, 1),
    ("6.28", r"2\pi", 0, 1),
    ("6.29", r"2\pi", 0, 0),
    (r"\pi", "3.14", 0, 1),
    ("3.14159", r"\pi", 0, 1),
    ("101_2", "101_2", 1, 1),
    ("101_{2}", "101_2", 1, 1),
    ("101", "101_2", 1, 1),
    ("5", "101_2", 0, 0),
    ("101_3", "101_2", 0, 0),
    ("101_2", "101", 0, 1),
    ("2B_{16}", "2B_{16}", 1, 1),
    ("007", "7", 1, 1),
    ("7.0", "7", 1, 1),
    (".5", "0.5", 1, 1),
    ("−3", "-3", 1, 1),
    ("3", "-3", 0, 0),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", 1, 1),
    (r"-\frac{1}{2}", r"\frac{1}{-2}", 1, 1),
    (r"x \in [-2,7]", "[-2,7]", 1, 1),
    ("[-2,7]", r"x \in [-2,7]", 1, 1),
    (r"-2 \le x \le 7", r"x \in [-2,7]", 1, 1),
    (r"-2 < x \le 7", r"x \in [-2,7]", 0, 0),
    ("x>5", r"(5,\infty)", 1, 1),
    (r"x\ge5", r"(5,\infty)", 0, 0),
    (r"(3, \infty) \cup (-\infty, 2)", r"(-\infty, 2) \cup (3, \infty)", 1, 1),
    (r"x<2 \text{ or } x>3", r"(-\infty, 2) \cup (3, \infty)", 1, 1),
    (r"\mathbb{R} \setminus \{2\}", r"(-\infty,2)\cup(2,\infty)", 1, 1),
    (r"x \ne 2", r"(-\infty,2)\cup(2,\infty)", 1, 1),
    (r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 1, 1),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 0, 0),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\begin{pmatrix} -\frac13 \\ \frac23 \\ \frac53 \end{pmatrix}",
        1,
        1,
    ),
    ("(-1/3, 2/3, 5/3)", r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}", 0, 1),
    ("x^2+3x", "x(x+3)", 1, 1),
    ("(x+2)(x+1)", "x^2+3x+2", 1, 1),
    ("(b+2)(a+5)", "(a+5)(b+2)", 1, 1),
    (r"\cot x", r"\frac{\cos x}{\sin x}", 1, 1),
    (r"\sin^2 x", r"1-\cos^2 x", 1, 1),
    (r"\sin 2x", r"2\sin x\cos x", 1, 1),
    (r"\frac{1}{x-1}", r"\frac{x+1}{x^2-1}", 1, 1),
    ("p-q", "q-p", 0, 0),
    ("3R^2", "3r^2", 0, 0),
    (r"\sqrt{x^2}", "x", 0, 0),
    ("2^{n-1}", r"\frac{2^n}{2}", 1, 1),
    ("2^{4950}", "2^{4950}", 1, 1),
    ("2^{4950}", "2^{4951}", 0, 0),
    ("4^{2475}", "2^{4950}", 1, 1),
    (r"\text{CBAD}", "ABCD", 0, 0),
    ("CBAD", r"\text{ABCD}", 0, 0),
    ("LQXS", "LQSX", 0, 0),
    ("even", r"\text{even}", 1, 1),
    ("neve", r"\text{even}", 0, 0),
    ("odd", r"\text{even}", 0, 0),
    (r"\log_2 8", "3", 1, 1),
    (r"\sin 30^\circ", "1/2", 1, 1),
    (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2", 1, 1),
    (r"\sqrt[3]{8}", "2", 1, 1),
    ("(-8)^{1/3}", "-2", 1, 1),
    ("5!", "120", 1, 1),
    (r"\binom{5}{2}", "10", 1, 1),
    (r"0.\overline{3}", "1/3", 1, 1),
    ("1:2", "1:2", 1, 1),
    ("1:2", "2:1", 0, 0),
    ("1/2", "1:2", 1, 1),
    ("x=1, x=2", "1,2", 1, 1),
    (r"x=2 \text{ or } x=1", "1,2", 1, 1),
    ("x=2, y=3", "(2,3)", 1, 1),
    ("y=3, x=2", "(2,3)", 1, 1),
    ("2,3", "(2,3)", 1, 1),
    ("3,2", "(2,3)", 0, 0),
    ("(2,3)", "2,3", 0, 1),
    ("(x,y) = (2,3)", "(2,3)", 1, 1),
    ("f(x)=x^2", "x^2", 1, 1),
    ("m+n=5", "5", 1, 1),
    ("2x=10", "10", 0, 1),
    ("2x=10", "x=5", 1, 1),
    ("2+3=5", "5", 1, 1),
    ("4=5", "5", 0, 0),
    ("five", "5", 1, 1),
    ("4", r"\mbox{four}", 1, 1),
    (r"1 \approx 5", "5", 0, 0),
    ("8.24", r"\approx 8.24 \text{ mph}", 1, 1),
    ("0.56", r"0.56 = 56\%", 1, 1),
    (r"56\%", r"0.56 = 56\%", 1, 1),
    (r"-80\leq g(x)\leq 82", "[-80,82]", 1, 1),
    (r"\frac{11+9a}{20}", r"\frac{9a+11}{20}", 1, 1),
    (r"\frac{270}{7}", r"\frac{270}7\text{ degrees}", 1, 1),
    ("137.5", r"137 \frac{1}{2}", 1, 1),
    (r"6.72 \times 10^{-5}", ".0000672", 1, 1),
    (r"(3, \pi/2)", r"\left( 3, \frac{\pi}{2} \right)", 1, 1),
    ("5.4", r"5.4 \text{ cents}", 1, 1),
    ("2k+2", "2(k+1)", 1, 1),
    (r"-2, 1 + i \sqrt{3}, 1 - i \sqrt{3}", r"1 - i \sqrt{3}, -2, 1 + \sqrt{3}i", 1, 1),
    ("6 - 5i", "6-5i", 1, 1),
    ("6 + 5i", "6-5i", 0, 0),
    ("5 not sure", "5", 0, 0),
    ("not 5", "5", 0, 0),
    ("the answer is 5", "5", 1, 1),
    ("no solution", r"\text{No solution}", 1, 1),
    (r"\emptyset", r"\varnothing", 1, 1),
    (r"e^{i\pi}", "-1", 1, 1),
    (r"e^{\pi\sqrt{163}}", "262537412640768744", 0, 0),
    (r"\ln 4", r"2\ln 2", 1, 1),
    (r"\ln 4", r"2\ln 3", 0, 0),
    ("3x^{2}y", "3yx^2", 1, 1),
    ("xy", "yx", 1, 1),
    (r"\frac{a}{b}", "a/b", 1, 1),
    ("a/bc", r"\frac{a}{bc}", 0, 0),
    (r"1/2\pi", r"\frac{\pi}{2}", 1, 1),
    ("10^{10^{10}}", "10^{10^{10}}", 1, 1),
    (r"\infty", r"\infty", 1, 1),
    (r"-\infty", r"\infty", 0, 0),
    ("all real numbers", r"\mathbb{R}", 1, 1),
    (r"(-\infty,\infty)", r"\mathbb{R}", 1, 1),
    (r"\left[\frac{\pi^2}{8},\frac{5\pi^2}{4}\right]", r"\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right]", 1, 1),
    ("4:30", "4:30", 1, 1),
    (r"\boxed{5}", "5", 1, 1),
    (r"\text{5}", "5", 1, 1),
    (r"\mathbf{5}", "5", 1, 1),
    (r"\frac{3}{4} \text{ of the cake}", r"\frac34", 1, 1),
    ("36 sq units", "36", 1, 1),
    ("x^5 - x^4 + x^3 - x^2 + x - 1", "(x-1)(x^4+x^2+1)", 1, 1),
    ("10080", r"10,\!080", 1, 1),
    ("11,111,111,100", r"11,\! 111,\! 111,\! 100", 1, 1),
    ("58,500", "58500", 1, 1),
    ("58,500", "58,500", 1, 1),
    ("100, 200", "200, 100", 1, 1),
    (r"2\cdot 3", "6", 1, 1),
    ("2 3", "6", 0, 0),
    ("2 3", "23", 0, 0),
    ("[[1,2],[3,4]]", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 1, 1),
    (r"\langle 1,2\rangle", "(1,2)", 1, 1),
    (r"\sqrt2/2", r"\frac{1}{\sqrt2}", 1, 1),
    ("sqrt(2)/2", r"\frac{1}{\sqrt2}", 1, 1),
    ("√2/2", r"\frac{1}{\sqrt2}", 1, 1),
    ("x**2+1", "x^2+1", 1, 1),
    (r"\frac{\pi}{6}", r"30^\circ", 0, 0),
    ("17.0", "17", 1, 1),
    (r"\text{east}", "east", 1, 1),
    (r"3\text{ and }5", "3,5", 1, 1),
    (r"3, 5, \text{ and } 7", "3,5,7", 1, 1),
    (r"120 \text{ ways}", "120", 1, 1),
    (r"\$1,\!657", "1657", 1, 1),
    ("1/3", "0.33", 0, 0),
    ("1/3", "0.3333", 0, 1),
    ("2/3", "0.667", 0, 1),
    ("0.1", "1/9", 0, 0),
    ("8.2412", "8.24", 0, 1),
    (r"3^{2}\cdot 5", "45", 1, 1),
    ("C(5,2)", "10", 0, 0),
    (r"x \geq -1", r"[-1,\infty)", 1, 1),
    ("n = 255", "255", 1, 1),
    ("-1-16i", "-16i-1", 1, 1),
    (r"4\!:\!51", "4:51", 1, 1),
    (r"\text{(C) }\frac{1}{2}", r"\frac12", 1, 1),
    (r"x = -1 \text{ or } x = 3", "-1,3", 1, 1),
    (r"\left\{-1,3\right\}", "-1,3", 1, 1),
    (r"x \in \{-1, 3\}", r"\{3,-1\}", 1, 1),
    (r"x\in(-\infty,2)\cup(3,\infty)", r"(-\infty,2)\cup(3,\infty)", 1, 1),
    (r"\{x \mid x > 3\}", r"(3,\infty)", 1, 1),
    (r"\frac{\sqrt{6}-\sqrt{2}}{4}", r"\frac{\sqrt6-\sqrt2}{4}", 1, 1),
    (r"\frac{\sqrt{6}+\sqrt{2}}{4}", r"\frac{\sqrt6-\sqrt2}{4}", 0, 0),
    ("2^{100}-2", "2(2^{99}-1)", 1, 1),
    (r"\frac{1}{2^{98}}", "2^{-98}", 1, 1),
    (r"\sqrt[4]{8}", "2^{3/4}", 1, 1),
    ("8^{1/4}", r"\sqrt[4]{8}", 1, 1),
    (r"1+\sqrt[3]{2}", "1+2^{1/3}", 1, 1),
    ("12^{1/7}", r"\sqrt[7]{12}", 1, 1),
    (r"\frac{2\sqrt{35}}{35}", r"\frac{2}{\sqrt{35}}", 1, 1),
    ("|x|", r"\sqrt{x^2}", 1, 1),
    ("2|x|", r"2\sqrt{x^2}", 1, 1),
    (r"\sqrt{x^2+y^2}", "x+y", 0, 0),
    (r"\log\left(\frac{2007}{2006}\right)", r"\log 2007 - \log 2006", 1, 1),
    (r"\log(8)/\log(2)", "3", 1, 1),
    (r"\ln(x^2)", r"2\ln x", 1, 1),
    ("e^{2x}", "(e^x)^2", 1, 1),
    (r"\pi r^2", r"r^2\pi", 1, 1),
    (r"\frac{bx}{h}(h-x)", r"\frac{bx(h-x)}{h}", 1, 1),
    (r"-\frac{a}{3}", r"\frac{-a}{3}", 1, 1),
    ("n(n+1)/2", r"\frac{n(n+1)}{2}", 1, 1),
    (r"\frac{n^2+n}{2}", r"\frac{n(n+1)}{2}", 1, 1),
    (r"\binom{n}{2}", r"\frac{n(n-1)}{2}", 1, 1),
    ("(1, 2), (3, 4)", "(3,4),(1,2)", 1, 1),
    (r"\{(1,2),(3,4)\}", "(3,4),(1,2)", 1, 1),
    ("(1, 2), (3, 4)", "(2,1),(3,4)", 0, 0),
    (r"(2, 1) \text{ and } (4,3)", "(2,1),(4,3)", 1, 1),
    ("a=1, b=2, c=3", "(1,2,3)", 1, 1),
    ("a=1,b=2", "a=2,b=1", 0, 0),
    (r"25 \text{ miles per hour}", "25", 1, 1),
    (r"25 \text{ mph}", "25", 1, 1),
    (r"3.0 \times 10^8 \text{ m/s}", r"3\times10^8", 1, 1),
    (r"3 \times 10^8", r"3\times10^9", 0, 0),
    (r"5 \times 10^{-3}", "0.005", 1, 1),
    (r"5 \%", "0.05", 1, 1),
    (r"\text{Yes}", "yes", 1, 1),
    (r"\text{No}", "yes", 0, 0),
    ("True", "true", 1, 1),
    (r"\text{A, B}", "B, A", 1, 1),
    (r"\text{A,B,C}", "A,B", 0, 0),
    ("A, C", r"\text{A,B}", 0, 0),
    ("ABC", r"\text{A,B,C}", 0, 0),
    (r"\frac{3}{2}\text{ or }1.5", "1.5", 0, 0),
    (r"\frac{3}{2} = 1.5", "1.5", 1, 1),
    ("5:6", "5:6", 1, 1),
    ("5 : 6", "5:6", 1, 1),
    (r"5 \text{ to } 6", "5:6", 1, 1),
    ("October 30", r"\text{October 30}", 1, 1),
    ("October 31", r"\text{October 30}", 0, 0),
    ("9:24", r"9:24\text{ a.m.}", 1, 1),
    (r"\angle ABC = 30^\circ", r"30^\circ", 1, 1),
    (r"m\angle A = 30", r"30^\circ", 1, 1),
    (r"P(A) = \frac12", r"\frac12", 1, 1),
    ("f(x) = 2x+1", "f(x)=2x+1", 1, 1),
    ("g(x) = 2x+1", "f(x)=2x+1", 0, 1),
    ("y = 2x+1", "f(x)=2x+1", 0, 1),
    ("2x+1", "f(x)=2x+1", 1, 1),
    (r"\$5,000", "5000", 1, 1),
    (r"5,000 \text{ dollars}", r"\$5{,}000", 1, 1),
    ("5000.00", r"\$5,000", 1, 1),
    ("$5", "5", 1, 1),
    ("-5", "5", 0, 0),
    ("--5", "5", 1, 1),
    ("+5", "5", 1, 1),
    ("5+", "5", 0, 0),
    ("5??", "5", 0, 0),
    ("5 or 5", "5", 0, 0),
    (r"\frac{10}{4}", "2.5", 1, 1),
    ("2.50", "2.5", 1, 1),
    ("2,5", "2.5", 0, 1),
    ("3.14", r"\pi", 0, 1),
    ("22/7", r"\pi", 0, 0),
    (r"\frac{22}{7}", "3.14", 0, 1),
    ("0.999", "1", 0, 0),
    ("1.0000001", "1", 0, 0),
    ("0.9999999", "1", 0, 0),
    (r"33.33\%", r"\frac13", 0, 0),
    ("1e-7", "0", 0, 0),
    ("2.0000001", "2", 0, 0),
    ("0.3333333333", "1/3", 0, 1),
    ("1.41421356", r"\sqrt2", 0, 1),
    (r"\frac{1}{0}", "5", 0, 0),
    ("i", r"\sqrt{-1}", 1, 1),
    (r"\sqrt{-4}", "2i", 1, 1),
    ("(2+i)^2", "3+4i", 1, 1),
    (r"\frac{1}{i}", "-i", 1, 1),
    ("3+4i", "3-4i", 0, 0),
    ("e", "2.71828", 0, 1),
    (r"\cos(\pi/3)", r"\frac12", 1, 1),
    (r"\arctan 1", r"\frac{\pi}{4}", 1, 1),
    (r"\tan^{-1}(1)", r"\frac{\pi}{4}", 1, 1),
    (r"\sin^{2}(x)", r"(\sin x)^2", 1, 1),
    (r"\lfloor 3.7 \rfloor", "3", 1, 1),
    ("10!", "3628800", 1, 1),
    ("100!", "100!", 1, 1),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}", 0, 1),
    (r"\begin{bmatrix} 1/2 \\ 2 \end{bmatrix}", r"\begin{pmatrix} \frac{1}{2} \\ 2 \end{pmatrix}", 1, 1),
    (
        r"\left[\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right]",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        1,
        1,
    ),
    (r"\left(\begin{matrix} 1 & 2 \\ 3 & 4 \end{matrix}\right)", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 1, 1),
    ("[1, 2, 3]", "1,2,3", 0, 1),
    ("1; 2; 3", "1,2,3", 1, 1),
    (r"(1, \infty)", r"(1, \infty]", 0, 0),
    (r"(-\infty, 1) \cup [2, 3]", r"(-\infty, 1) \cup [2, 3)", 0, 0),
    (r"[1,2] \cup [2,3]", "[1,3]", 1, 1),
    (r"1 \leq x \leq 3", "[1,3]", 1, 1),
    ("x < -1 or x > 1", r"(-\infty,-1)\cup(1,\infty)", 1, 1),
    ("|x| > 1", r"(-\infty,-1)\cup(1,\infty)", 0, 0),
    ("a < 5", "x < 5", 1, 1),
    (r"10\sqrt{2} cm", r"10\sqrt2", 1, 1),
    (r"3\pi \text{ cm}^3", r"3\pi", 1, 1),
    (r"\mathbf{(C)}", "C", 1, 1),
    (r"\text{C. } 5", "C", 1, 1),
    ("C: 5", "C", 1, 1),
    ("D", "C", 0, 0),
    (r"\text{The answer is C}", "C", 1, 1),
    ("c", "C", 1, 1),
    ("x^2 + 1 = 0", "x^2 = -1", 1, 1),
    ("x^2 + 1", "x^2 + 1 = 0", 0, 0),
    (r"\frac{x^2}{9} + \frac{y^2}{4} = 1", "4x^2+9y^2=36", 1, 1),
    ("x^2+y^2=25", "x^2+y^2=16", 0, 0),
    (r"\frac{x+1}{x+2}", r"\frac{2x+2}{2x+4}", 1, 1),
    (r"\overline{AB}", "AB", 0, 0),
    (r"\text{undefined}", "undefined", 1, 1),
    (r"\infty", r"\text{infinity}", 0, 0),
    (r"2\text{ hours } 30\text{ minutes}", "2.5", 0, 0),
    (r"2\text{ hours } 30\text{ minutes}", "150 minutes", 1, 1),
    (r"2\text{ hours } 30\text{ minutes}", "2.5 hours", 0, 1),
    (r"2\text{ hours } 90\text{ minutes}", "210 minutes", 0, 0),
    (r"6\text{ ft } 2\text{ in}", "74 inches", 1, 1),
    (r"\frac{3}{4}", "3:4", 1, 1),
    ("0.75", "3:4", 0, 1),
    (r"\frac{6}{8}", "6:8", 0, 1),
    ("3:4", r"\frac{4}{3}", 0, 0),
    (r"\frac{4}{3}\pi r^3", r"\frac{4\pi r^3}{3}", 1, 1),
    ("0", "-0", 1, 1),
    ("0.0", "0", 1, 1),
    (r"6\sqrt{3}+6", r"6(1+\sqrt{3})", 1, 1),
    (r"1.5 \text{ million}", "1500000", 1, 1),
    ("two", "2", 1, 1),
    (r"3\frac{1}{2}", r"\frac{7}{2}", 1, 1),
    (r"-3\frac{1}{2}", r"-\frac{7}{2}", 1, 1),
    (r"-3\frac{1}{2}", r"-\frac{5}{2}", 0, 0),
    (r"\frac{3\frac12}{2}", r"\frac74", 1, 1),
    (r"2 \frac{1}{3}", r"\frac{2}{3}", 0, 0),
    (r"1\,000\,000", "10^6", 1, 1),
    ("10^6", "1{,}000{,}000", 1, 1),
    ("50,000.5", "50000.5", 1, 1),
    ("12,34", "1234", 0, 0),
    (r"3 \text{ and } 4", "7", 0, 0),
    (r"S = \{1,2\}", r"\{1,2\}", 1, 1),
    (r"-\sin x", r"\sin(-x)", 1, 1),
    (r"\sec x", r"1/\cos x", 1, 1),
    (r"\frac{-1\pm\sqrt5}{2}", r"\frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}", 1, 1),
    (r"\pm 2", "2,-2", 1, 1),
    (r"\pm 2", "2", 0, 0),
    ("2", r"\pm 2", 0, 0),
    (r"x = \pm 2", r"\pm 2", 1, 1),
]


@pytest.mark.parametrize("mode", ["strict", "permissive"])
def test_what_is_the_same_answer(mode: str) -> None:
    wrong = []
    for response, gold, *wanted in SAME:
        verdict = verify(rf"\boxed{{{response}}}", gold, mode=mode)
        if verdict.correct != bool(wanted[mode == "permissive"]):
            wrong.append((response, gold, verdict))
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("response", "want"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed 5", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{ \{1,2\} }", r"\{1,2\}"),
        (r"\boxed{3} and \boxed{unfinished", "3"),
        (r"\boxed{unfinished", None),
        ("nothing", None),
        ("Answer: 12", "12"),
        ("**Answer:** 12", "12"),
        ("**Answer: 12**", "12"),
        ("Answer:\n12", "12"),
        ("Final Answer:\n\\[ 12 \\]", "12"),
        ("Answer: \\(42\\)", "42"),
        ("The answer is 72.", "72"),
        ("The answer is 3.5.", "3.5"),
        ("The final answer is $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("The answer is: $x=5$ because of it", "x=5"),
        ("The answer is 5 or 6.", "5 or 6"),
        ("the answers are 2 and 3.", "2 and 3"),
        ("the answer is (A).", "(A)"),
        ("#### 1,000", "1,000"),
        ("<think> \\boxed{3} </think> <answer> 5 </answer>", "5"),
        ("Answer: 42 apples\n#### 43", "42 apples"),
    ],
)
def test_what_a_response_commits_to(response: str, want: str | None) -> None:
    assert extract_answer(response) == want


def test_the_ways_to_extract_are_a_choice() -> None:
    assert reward("it makes 7 and then 12 eggs", "12") == 0
    assert reward("it makes 7 and then 12 eggs", "12", extract=("boxed", "number")) == 1
    assert (
        reward(r"Answer: 3, not \boxed{4}", "3", extract=("line",)) == 0
        and reward("Answer: 3", "3", extract=("boxed",)) == 0
    )
    assert reward("3/4", "0.75", extract=("whole",)) == 1
    with pytest.raises(ValueError, match=r"no extract 'box'.*boxed"):
        reward("1", "1", extract=("box",))
    with pytest.raises(ValueError, match="strict or permissive"):
        reward("1", "1", mode="loose")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("response", "finish", "reason"),
    [
        ("Answer: 12", "stop", "equal"),
        ("Answer: 12", "length", "truncated"),
        ("#### 12", "length", "truncated"),
        (r"so \boxed{12", "length", "truncated"),
        (r"so \boxed{12", "stop", "no_answer"),
        (r"\boxed{12} and so", "length", "equal"),
        ("Answer: 12\nand so", "length", "equal"),
        (r"\boxed{13}", "length", "different"),
    ],
)
def test_a_response_that_was_cut_off_is_counted_apart(response: str, finish: str, reason: str) -> None:
    assert verify(response, "12", finish=finish).reason == reason


def test_boxes_side_by_side_are_a_list_only_where_the_reference_is_one() -> None:
    both = r"The roots are $\boxed{2}$ and $\boxed{3}$."
    assert (
        reward(both, "2,3") == 1
        and reward(both, "3") == 1
        and reward(both, "2") == 0
        and reward(r"\boxed{2} is wrong, so \boxed{3}", "2,3") == 0
    )


def test_the_tier_that_decided() -> None:
    def tier(response: str, answer: str) -> tuple[str | None, bool]:
        v = verify(rf"\boxed{{{response}}}", answer)
        return v.tier, v.correct

    assert (
        tier(r"\dfrac{1}{2}", r"\frac{1}{2}") == ("string", True)
        and tier("0.5", r"\frac12") == ("exact", True)
        and tier(r"\sqrt{2}+1", "3") == ("exact", False)
    )
    assert tier(r"\sin 2x", r"2\sin x\cos x") == ("symbolic", True)
    assert verify(r"\boxed{\sum_{k=1}^{100} k}", "5050").reason == "unreadable"  # not worked out
    assert tier(r"\frac{1}{300!}", r"\frac{2}{300!}") == ("exact", False) and tier(
        r"\frac{1}{2004!}", r"\frac{2}{2004!}"
    ) == ("symbolic", False)


def test_references_of_other_shapes() -> None:
    assert (
        reward(r"\boxed{72}", "9*8 = 72\n#### 72") == 1
        and reward(r"\boxed{72}", 72) == 1
        and reward(r"\boxed{1/2}", 0.5) == 1
    )
    assert reward(r"\boxed{b}", ["a", "b"]) == 1 and reward(r"\boxed{12}", r"We get $x=\boxed{12}$.") == 1
    for nothing in (None, "", " ", []):
        with pytest.raises(ValueError, match="reference answer"):
            reward(r"\boxed{1}", nothing)
    assert same_answer("1/2", "0.5") and not same_answer("1/2", "0.51") and last_boxed(r"\boxed{a{b}}") == "a{b}"
    assert [last_boxed(x) for x in (r"so \boxed -5.", r"write \boxed, or (\boxed)", r"\boxed 3/4")] == [
        "-5",
        None,
        "3/4",
    ]


def test_references_are_tried_against_themselves_before_a_run() -> None:
    rows = [{"answer": gold} for _, gold, *_ in SAME if not (gold.startswith("0.56") or "approx" in gold)]
    assert gold_against_itself(rows) == []
    bad = gold_against_itself(
        [{"id": "a", "answer": "5"}, {"id": "b", "answer": ""}, {"id": "c", "answer": "x" * 9000}]
    )
    assert [row["id"] for row in bad] == ["b", "c"] and bad[0]["reason"] == "no_reference"


def bombs(n: int) -> list[str]:
    rng = random.Random(0)
    kinds = [
        lambda k: "10" + "**10" * (k % 5 + 2),
        lambda k: "9^{" * (k % 40 + 2) + "9" + "}" * (k % 40 + 2),
        lambda k: f"{k + 10}" + "!" * (k % 5 + 1),
        lambda k: "(" * (k * 37 % 3000) + "1" + ")" * (k * 37 % 3000),
        lambda k: r"\frac{1}{" * 300 + "2" + "}" * 300,
        lambda k: r"\sqrt{" * 200 + "2" + "}" * 200,
        lambda k: "1" * (k * 100),
        lambda k: "(x+y+z+w)^{60}(a+b+c+d)^{60}",
        lambda k: r"\binom{10^{9}}{10^{8}}",
        lambda k: "2^{10^{" + str(k) + "}}",
        lambda k: "a" * 5000 + "!",
        lambda k: "1," * 4000,
        lambda k: r"\int_0^1 \int_0^1 e^{e^{e^{x}}} dx",
        lambda k: r"\sum_{k=1}^{10^{9}} \frac{1}{k}",
        lambda k: r"\sin(" * 60 + "1" + ")" * 60,
        lambda k: r"e^{e^{e^{e^{e^{9}}}}}",
        lambda k: "{" * 8000,
        lambda k: r"\begin{pmatrix}" * 500,
        lambda k: "1e999999999",
        lambda k: r"\log_{10^{-100}}(10^{-99999})",
        lambda k: "x^" * 500 + "2",
        lambda k: "-" * 5000 + "1",
        lambda k: r"\text{" * 900 + "}" * 900,
        lambda k: " " * 9000 + "1 " * 4000,
    ]
    return [kinds[k % len(kinds)](k) for k in range(n)] if n else [rng.choice(kinds)(3)]


@pytest.mark.slow
def test_a_thousand_bombs_leave_the_pool_healthy() -> None:
    scorer = Scorer([RewardSpec("math", timeout=6.0)], workers=2, report=lambda text: None)
    scorer.check([])
    before = len(multiprocessing.active_children())
    answers = ["5", r"\sin(10^{10^{10}})", "10^{10^{10}}", r"\sqrt{x^2+1}"]
    rollouts = [
        Rollout(
            Prompt(str(k), (1,), "", answer=answers[k % 4]),
            [1],
            [True],
            [0.0],
            [0],
            "stop",
            text=(rf"\boxed{{{b}}}" if k % 5 else rf"Answer: {b}"),
        )
        for k, b in enumerate(bombs(1000))
    ]
    rollouts += [
        Rollout(Prompt("long", (1,), "", answer="5"), [1], [True], [0.0], [0], "stop", text=text)
        for text in (
            r"\boxed{" * 200_000,
            "answer is " * 200_000,
            "#" * 2_000_000,
            "1," * 1_000_000,
            "{" * 1_000_000 + r"\boxed{5",
            "$" * 1_000_000,
            "<answer>" * 200_000,
            " " * 1_000_000,
        )
    ]
    start = time.monotonic()
    scorer.score(rollouts)
    assert time.monotonic() - start < 60
    good = [
        Rollout(Prompt("p", (1,), "", answer="5"), [1], [True], [0.0], [0], "stop", text=rf"\boxed{{{5 + k % 2}}}")
        for k in range(40)
    ]
    scorer.score(good)
    assert [r.reward for r in good] == [1.0, 0.0] * 20
    assert all(r.reward == 0 for r in rollouts[:1000] if r.error is None and r.prompt.answer == "5")
    assert scorer.metrics() == {"reward/errors": 0.0, "reward/timeouts": 0.0}
    assert len(multiprocessing.active_children()) <= before + 2
    scorer.close()
    assert len(multiprocessing.active_children()) == before


@pytest.mark.slow
def test_one_that_hangs_costs_only_itself() -> None:
    scorer = Scorer([RewardSpec(f"{EXAMPLES}:some_hang", timeout=0.7)], workers=2, report=lambda text: None)
    scorer.check([])
    before = len(multiprocessing.active_children())
    texts = ["fine", "hang", "fine", "die", "fine", "fine"] * 2
    rollouts = [Rollout(Prompt(str(k), (1,), ""), [1], [True], [0.0], [0], "stop", text=t) for k, t in enumerate(texts)]
    threads = [threading.Thread(target=scorer.score, args=(rollouts[k::2],)) for k in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [r.reward == 1.0 for r in rollouts] == [t == "fine" for t in texts]
    assert scorer.metrics() == {"reward/errors": 2.0, "reward/timeouts": 2.0}
    scorer.close()
    assert len(multiprocessing.active_children()) == before


@pytest.mark.slow
def test_workers_import_neither_torch_nor_sympy() -> None:
    code = (
        "import sys; from rlkit.rewards.math import verify\nfrom rlkit.rewards import scoring\n"
        "verify(r'\\boxed{1/2}', '0.5'); verify(r'\\boxed{\\sin 1}', r'\\cos 1'); verify(r'\\boxed{\\int x dx}', '1')\nprint('torch' in sys.modules, 'sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.split() == [
        "False",
        "False",
    ]


@pytest.mark.slow
def test_an_audit_counts_reasons_and_disagreements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        (r"\boxed{5}", "5", True, "stop"),
        (r"\boxed{6}", "5", True, "stop"),
        ("cut", "5", False, "length"),
        (r"\boxed{0.5}", "1/2", True, "stop"),
        ("10\n-5", "5", True, "stop"),
    ]
    file = tmp_path / "responses.jsonl"
    file.write_text(
        "".join(json.dumps({"response": r, "answer": a, "correct": c, "finish": f}) + "\n" for r, a, c, f in rows)
    )
    result = audit(
        file,
        ["math", RewardSpec("math", name="whole", args={"extract": ["whole"]}), f"{EXAMPLES}:hangs_on_long"],
        workers=1,
    )
    assert [s.reason for s in result.scored[0]] == ["equal", "different", "truncated", "equal", "no_answer"]
    assert [s.tier for s in result.scored[0]] == ["string", "exact", "", "exact", ""] and result.disagreements() == [4]
    assert result.against_label() == {"agree": [0, 2, 3], "false_positive": [], "false_negative": [1, 4], "failed": []}
    assert [s.correct for s in result.scored[2]] == [True, True, True, True, True]
    assert main(["audit-reward", str(file), "--against", "exact"]) == 0
    told = capsys.readouterr().out
    assert [s.way for s in result.scored[0]] == ["boxed", "boxed", "", "boxed", ""]
    assert "found by: boxed 3" in told and "(no_answer)" in told
    assert "math: 2 of 5 correct" in told and "truncated 1" in told and "math and exact disagree on 2 of 5" in told
    file.write_text('{"response": "5"}\n')
    with pytest.raises(ValueError, match=r"responses.jsonl:1.*answer"):
        read_responses(file)


def test_ways_of_writing_vote_for_the_same() -> None:
    for same in (
        ["0.5", r"\frac12", "x = 1/2"],
        ["1,2", r"\{2, 1\}", "x=2 or x=1"],
        ["30", r"30^\circ"],
        ["(1,2)", r"\left(1, 2\right)"],
        [r"\text{even}", "even"],
    ):
        assert len({vote_key(s) for s in same}) == 1
    assert len({vote_key(s) for s in ("(1,2)", "[1,2)", "(2,1)", "1,2", "2", "-2", r"\sqrt2", "x^2", "")}) == 9
