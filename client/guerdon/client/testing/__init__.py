"""FAKE servers for your tests: real gRPC on a loopback port, made-up scores and completions.

    def test_the_longest_answer_wins():
        with FakeRewardServer(lambda prompt, response: float(len(response))) as server:
            with RewardClient(server.target) as rewards:
                assert rewards.rank("fake", "Hi", ["a", "abc"]).ranking[0].index == 1

They compute nothing: no model, no tokenizer. Your code talks to them through the real client and
a real socket, so that faults (`fail`, `break_streams`, `restart`, `add_revision`) are real as well.
`FakePolicyServer` is the same for the policy sampler, with versions of weights.
"""

from guerdon.client.testing._policy_server import FakePolicyServer
from guerdon.client.testing._policy_service import ReceivedUpdate
from guerdon.client.testing._reward_server import FakeRewardServer, RecordedCall
from guerdon.client.testing._server import FakeClock

__all__ = ["FakeClock", "FakePolicyServer", "FakeRewardServer", "ReceivedUpdate", "RecordedCall"]
