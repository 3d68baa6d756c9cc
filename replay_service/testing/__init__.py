"""A service for the tests of training loops: one line, no model, no network, the same every time.

from replay_service.testing import replay_service

with replay_service(seq_len=16) as service, service.client() as client:
    client.ensure_run("a-run", service.corpus, {"global_batch_size": 8, "injection_ratio": "0.25"})
    batch = client.batch("a-run", step=0)

`replay_service(samples=LabelledSamples.random())` serves samples to classify.
"""

from replay_service.testing.corpus import Documents, MadeUpCorpus
from replay_service.testing.samples import LabelledSamples
from replay_service.testing.service import ServiceUnderTest, replay_service

__all__ = ["Documents", "LabelledSamples", "MadeUpCorpus", "ServiceUnderTest", "replay_service"]
