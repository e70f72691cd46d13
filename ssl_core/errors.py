"""The one error users meet: it states the value, the rule and where to fix it."""


class HeadwaterError(Exception):
    """Bad input, configuration or state that the user can mend.

    Anything else that escapes a stage is a bug and keeps its traceback.
    """

    def __init__(self, value: object, rule: str, fix: str) -> None:
        self.value, self.rule, self.fix = value, rule, fix
        super().__init__(f"{value}: {rule}. Fix: {fix}")
