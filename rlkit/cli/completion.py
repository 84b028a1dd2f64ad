"""What a shell needs to complete ``rlkit`` commands, their options, and the names of configurations.

One bash function serves bash and zsh (through ``bashcompinit``); fish gets its own lines. The words are those of the parsers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlkit.shipped import names

SHELLS = ("bash", "zsh", "fish")
_BASH = """\
_rlkit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands} --help --version"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    case "$word" in -*) ;; *) [ "$COMP_CWORD" -eq 1 ] || COMPREPLY+=($(compgen -f -- "$word")) ;; esac
}}
complete -o filenames -F _rlkit rlkit
"""


def script(shell: str, options: Mapping[str, Sequence[str]], configured: frozenset[str]) -> str:
    """The script of a shell. ``options``: those of every command; ``configured``: the commands that take a configuration."""

    def words(command: str) -> list[str]:
        return [*options[command], "--help", *(names() if command in configured else ())]

    if shell == "fish":
        first = [f"complete -c rlkit -n __fish_use_subcommand -f -a '{' '.join(options)}'"]
        more = [
            f"complete -c rlkit -n '__fish_seen_subcommand_from {command}' -a '{' '.join(words(command))}'"
            for command in options
        ]
        return "\n".join([*first, *more]) + "\n"
    cases = "\n".join(f'            {command}) words="{" ".join(words(command))}" ;;' for command in options)
    bash = _BASH.format(commands=" ".join(options), cases=cases)
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash
