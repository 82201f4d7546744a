"""What can go wrong, each as one line that says what failed, on what, and why."""


class RunnerError(Exception):
    """The runner or its machines cannot do what they must: no verdict on oncache."""


class MachineError(Exception):
    """A machine did not do what the scenario asked of it."""


class ScenarioTimeout(BaseException):
    """The scenario's time is up. No `except Exception` of a scenario may swallow it."""
