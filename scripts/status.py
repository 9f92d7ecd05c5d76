"""Shows what the runs of a study, or of a sweep, have come to.

    python scripts/status.py outputs/<study>                                every run that was started
    python scripts/status.py method=code,codex reward=aesthetic seed=0,1    every run of a sweep, those not started too

done; running; partial: stopped or killed, the same command goes on; failed, with its reason; missing. --failed shows those alone
that are not done.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.types import UsageError


def main(arguments: list[str]) -> None:
    asked = [argument for argument in arguments if argument != "--failed"]
    if not asked or any(argument.startswith("-") for argument in asked):
        sys.exit(__doc__)
    from guidedgen import command_line, status, sweeps

    try:
        if "=" in asked[0]:
            states = status.of_sweep(sweeps.runs(command_line.for_hydra(asked)))
        else:
            states = [state for folder in asked for state in status.of_study(Path(folder))]
    except UsageError as error:
        print(f"guidedgen: {error}", file=sys.stderr)
        sys.exit(2)
    status.show([state for state in states if "--failed" not in arguments or state.state != "done"])
    print(status.summary(states))


if __name__ == "__main__":
    main(sys.argv[1:])
