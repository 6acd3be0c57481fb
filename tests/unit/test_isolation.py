"""What a live request can see of a repeated pass: nothing."""

import functools
import gc
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from complete_gradients import complete_gradients, plain_logits
from gradient_rules import UnexplainableError
from isolation import PrivateRandom, light_copy


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.number, self.log = 0, []

    def forward(self, x):
        self.number += 1
        self.log.append(self.number)
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


class Noisy(Net):
    def forward(self, x):
        features = F.dropout(super().forward(x), 0.5, training=True)
        return features + torch.rand_like(features) + torch.randn(5) + torch.randint(3, (5,))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.rand(1, 3, 8, 8)


class TestLightCopy:
    def test_shares_memory_and_no_module(self, x):
        net = Net().eval()
        copied = light_copy(net)
        assert [t.data_ptr() for t in copied.state_dict().values()] == [
            t.data_ptr() for t in net.state_dict().values()
        ]
        assert {id(module) for module in copied.modules()}.isdisjoint(map(id, net.modules()))
        assert torch.equal(copied(x), net(x))
        assert not any(p.requires_grad for p in copied.parameters())
        assert all(p.requires_grad for p in net.parameters())
        assert [type(p) for p in copied.parameters()] == [type(p) for p in net.parameters()]

    def test_attributes_and_containers_are_its_own(self, x):
        net = Net().eval()
        light_copy(net)(x)
        assert (net.number, net.log) == (0, [])

    def test_tied_parameters_and_shared_modules_stay_so(self):
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        net[1].weight = net[0].weight
        net.again = net[0]
        copied = light_copy(net)
        assert copied[1].weight is copied[0].weight
        assert copied.again is copied[0]

    def test_every_way_to_a_module_leads_to_its_copy(self, x):
        """Such as a forward method that a library has replaced."""

        def scaled(module, x, factor):
            module.seen = factor
            return Net.forward(module, x) * factor

        for ways in (
            {"forward": lambda net: types.MethodType(functools.partial(scaled, factor=2), net)},
            {"forward": lambda net: functools.partial(scaled, net, factor=2)},
        ):
            net = Net().eval()
            net.forward = ways["forward"](net)
            net.layers, net.by_name = [net.conv, (net.fc,)], {"bn": net.bn}
            copied = light_copy(net)
            copied(x)
            assert copied.number == 1
            assert (net.number, hasattr(net, "seen")) == (0, False)
            assert copied.layers == [copied.conv, (copied.fc,)]
            assert copied.by_name == {"bn": copied.bn}

    def test_a_hook_that_sets_an_attribute_sets_it_on_the_copy(self):
        net = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        net.register_forward_pre_hook(lambda module, _: setattr(module, "seen", 1))
        copied = light_copy(net)
        assert torch.equal(copied(torch.ones(1, 4)), net(torch.ones(1, 4)))
        del net.seen
        copied(torch.ones(1, 4))
        assert not hasattr(net, "seen")

    def test_a_module_with_an_end_of_its_own_is_not_copied(self):
        ended = []

        class Handle(nn.Module):
            def __del__(self):
                ended.append(1)

        net = nn.Sequential(Handle(), nn.Linear(2, 2))
        copied = light_copy(net)
        assert copied[0] is net[0]
        assert copied[1] is not net[1]
        del copied
        gc.collect()
        assert ended == []

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_torchscript(self, x):
        net = nn.Sequential(
            torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), nn.ReLU()
        ).eval()
        copied = light_copy(net)
        assert not any(p.requires_grad for p in copied.parameters())
        assert all(p.requires_grad for p in net.parameters())
        assert [p.data_ptr() for p in copied.parameters()] == [p.data_ptr() for p in net.parameters()]
        assert torch.equal(copied(x), net(x))
        assert copied(x).requires_grad is False
        assert net(x).requires_grad is True


class TestRandomNumbers:
    @pytest.mark.parametrize(
        "draw",
        [
            lambda x: torch.bernoulli(x),
            lambda x: x.clone().uniform_(),
            lambda x: torch.rand(3, dtype=torch.float64),
            lambda x: torch.randn(2, 3),
            lambda x: torch.rand_like(x),
            lambda x: torch.randn_like(x, dtype=torch.float64),
            lambda x: torch.randint(7, (4,)),
            lambda x: torch.randint(3, 7, (4,)),
            lambda x: torch.randperm(9),
            lambda x: torch.multinomial(x.flatten(), 3),
            lambda x: torch.rand(3, generator=OWN),
            lambda x: F.dropout(x, 0.5, training=True),
        ],
    )
    def test_come_from_a_generator_of_the_pass(self, x, draw):
        state, own = torch.get_rng_state(), OWN.get_state()
        drawn = []

        class Draws(Net):
            def forward(self, x):
                drawn.append(draw(x.detach()))
                return super().forward(x)

        net = Draws().eval()
        state = torch.get_rng_state()
        for _ in range(2):
            complete_gradients(net, x)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(OWN.get_state(), own)
        first, again, *repeated = drawn
        assert not torch.equal(first, again)  # a second pass shows whether the logits are random
        assert torch.equal(first, repeated[0])
        assert first.dtype == draw(x).dtype

    def test_those_that_have_no_generator_are_refused_before_they_are_drawn(self):
        func, x = torch.ops.aten.native_dropout.default, torch.ones(4)
        state = torch.get_rng_state()
        with pytest.raises(UnexplainableError, match="native_dropout: expected an operator that takes a gen"):
            PrivateRandom()(func, (x, 0.5, True), {})
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(PrivateRandom()(func, (x, 0.5, False), {})[0], x)

    def test_attention_without_dropout_draws_none(self):
        func, x = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default, torch.rand(1, 1, 4, 4)
        assert torch.equal(PrivateRandom()(func, (x, x, x), {})[0], func(x, x, x)[0])


OWN = torch.Generator().manual_seed(3)


class TestLiveRequests:
    def test_beside_a_pass_the_owner_sees_no_change(self, x):
        """Looks from inside the pass, at the time of each of its calls."""
        looked = []

        class Looks(Noisy):
            def forward(self, x):
                looked.append((owner.number, all(p.requires_grad for p in owner.parameters())))
                output = super().forward(x)
                looked.append((torch.equal(torch.get_rng_state(), state), owner.log == []))
                return output

        owner = Looks().eval()
        state = torch.get_rng_state()
        complete_gradients(owner, x)
        plain_logits(owner, x)
        assert looked
        assert set(looked[::2]) == {(0, True)}
        assert set(looked[1::2]) == {(True, True)}

    def test_a_tensor_in_an_attribute_is_not_written(self, x):
        class Counts(Net):
            def __init__(self):
                super().__init__()
                self.calls = [torch.zeros(1)]

            def forward(self, x):
                self.calls[0] += 1
                return super().forward(x)

        net = Counts().eval()
        (found,) = complete_gradients(net, x)
        assert found.complete
        assert net.calls == [torch.zeros(1)]

    def test_answers_and_the_owners_random_numbers_stay_the_same(self, x):
        torch.set_num_threads(1)
        net, noisy = Net().eval(), Noisy().eval()
        with torch.inference_mode():
            expected = net(x)
        answered, drawn, failed, stop = [], [], [], threading.Event()

        def answers():
            with torch.inference_mode():
                while not stop.is_set():
                    answered.append(torch.equal(net(x), expected))

        def draws():
            drawn.extend(torch.rand(1).item() for _ in range(20_000))

        def explains():
            try:
                while not stop.is_set():
                    complete_gradients(net, x)
                    complete_gradients(noisy, x)
            except Exception as error:
                failed.append(error)

        torch.manual_seed(7)
        draws()
        alone, drawn = drawn, []
        torch.manual_seed(7)
        beside = [threading.Thread(target=run) for run in (answers, answers, explains, explains)]
        for thread in beside:
            thread.start()
        draws()
        stop.set()
        for thread in beside:
            thread.join()
        assert not failed
        assert drawn == alone
        assert answered
        assert all(answered)
        assert all(p.requires_grad for p in net.parameters())
