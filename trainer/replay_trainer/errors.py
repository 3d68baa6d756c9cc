"""Errors between a training loop and the service.

TrainerError
├── InvalidTraining        the configuration, or the text to train on, cannot be used
├── NotFinite              training has broken down: no gradient is finite any more
├── CorpusMismatch         the model to tune does not fit the corpus to rehearse from
└── ServiceError
    ├── ServiceUnavailable     no answer in time, however often it was tried
    │   └── NotReady           the plan waits for reports of earlier steps; ask again
    └── ServiceRefused         the service said no; `slug` is the stable name of the problem
        ├── AnswerTooLarge     so many steps hold more than one answer may have
        ├── RunGone            the run plans no further step, or is not there, or was rewound under this job
        ├── RunInUse           another job uses the run
        ├── ServiceUnknown     it does not know the corpus
        ├── TokenRefused       it asks for a token, or the one that was sent is not in force
        └── NotAllowed         the token is not for this
"""


class TrainerError(Exception):
    """Says what was wrong and what to do about it."""


class InvalidTraining(TrainerError):
    pass


class NotFinite(TrainerError):
    pass


class CorpusMismatch(TrainerError):
    pass


class ServiceError(TrainerError):
    pass


class ServiceUnavailable(ServiceError):
    pass


class NotReady(ServiceUnavailable):
    """Nothing is wrong: the plan waits for reports of earlier steps."""


class ServiceRefused(ServiceError):
    def __init__(self, slug: str, detail: str, status: int) -> None:
        super().__init__(slug, detail, status)
        self.slug = slug
        self.detail = detail
        self.status = status

    def __str__(self) -> str:
        return f"{self.detail} ({self.slug}, HTTP {self.status})"


class RunGone(ServiceRefused):
    """The run of this job is over. A step without anything to rehearse is an empty batch, and a plan that
    waits for reports is NotReady; this stays as it is."""


class RunInUse(ServiceRefused):
    """Nothing was changed: the other job goes on."""


class AnswerTooLarge(ServiceRefused):
    """`max_steps` is how many steps fit; 0: not even one."""

    def __init__(self, slug: str, detail: str, status: int, max_steps: int) -> None:
        super().__init__(slug, detail, status)
        self.max_steps = max_steps


class ServiceUnknown(ServiceRefused):
    pass


class TokenRefused(ServiceRefused):
    def __str__(self) -> str:
        return f"{super().__str__()}; the environment variable REPLAY_TOKEN must hold a token in force"


class NotAllowed(ServiceRefused):
    pass
