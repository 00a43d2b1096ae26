"""What tokens say, one event each: text held back and let go, and why the answer ends."""

from __future__ import annotations

from swarm_node.client.decoding.answer import Answer
from swarm_node.client.decoding.sampling import ChosenToken
from tests.doubles.fake_swarm import BOS, EOS, ToyTokenizer


def _answer(*stop: str, most: int = 100) -> Answer:
    return Answer(ToyTokenizer().stream(), frozenset({EOS}), stop, most)


def _texts(answer: Answer, tokens: bytes | list[int]) -> list[str]:
    return [answer.push(ChosenToken(token)).text for token in tokens]


def test_every_token_has_an_event_whether_it_shows_or_not() -> None:
    answer = _answer()
    assert _texts(answer, "aé".encode()) == ["a", "", "é"]
    assert answer.reason is None
    assert answer.push(ChosenToken(EOS)).text == ""
    assert (answer.reason, answer.text, answer.token_ids[-1]) == ("stop", "aé", EOS)


def test_what_was_held_back_comes_with_the_last() -> None:
    assert _texts(_answer("STOP", most=4), b"a ST") == ["a", " ", "", "ST"]
    answer = _answer("STOP")
    assert _texts(answer, [*b"ST", EOS]) == ["", "", "ST"]
    answer = _answer(most=2)
    assert "".join(_texts(answer, "é".encode()[:1] * 2)) == answer.text == "\ufffd\ufffd"


def test_a_stop_string_wins_over_the_length() -> None:
    answer = _answer("cd", most=4)
    assert "".join(_texts(answer, b"abcd")) == "ab"
    assert answer.reason == "stop_string"


def test_a_token_may_be_the_last_by_itself() -> None:
    answer = _answer("xy")
    assert answer.push(ChosenToken(ord("x")), last=False).text == ""
    assert answer.push(ChosenToken(ord("z")), last=True).text == "xz"
    assert answer.reason == "stop"


def test_probabilities_are_handed_on() -> None:
    event = _answer().push(ChosenToken(97, -0.5, ((97, -0.5), (98, -1.5))))
    assert (event.token, event.text, event.logprob, event.top) == (97, "a", -0.5, ((97, -0.5), (98, -1.5)))


def test_a_control_token_that_is_no_end_of_text_may_be_what_to_stop_at() -> None:
    def answer(*stop: str) -> Answer:
        return Answer(ToyTokenizer().stream(), frozenset(), stop, 100)

    ended = answer("</s>")
    assert _texts(ended, [*b"ab", EOS]) == ["a", "b", ""]
    assert (ended.reason, ended.text) == ("stop_string", "ab")
    across = answer("b</s>c")
    assert "".join(_texts(across, [*b"ab", EOS, *b"c"])) == "a"
    assert across.reason == "stop_string"
    other = answer("</t>")
    assert "".join(_texts(other, [*b"ab", EOS, *b"c"])) == "abc"


def test_control_tokens_are_told_at_their_place() -> None:
    def told(*stop: str) -> list[tuple[str, tuple[tuple[int, str], ...]]]:
        answer = Answer(ToyTokenizer().stream(), frozenset(), stop, 100)
        tokens = [*b"ab", EOS, BOS, *b"cd"]
        events = [answer.push(ChosenToken(token), last=token == ord("d")) for token in tokens]
        return [(event.text, event.controls) for event in events]

    assert told() == [
        *(("a", ()), ("b", ()), ("", ((0, "</s>"),)), ("", ((0, "<s>"),))),
        *(("c", ()), ("d", ())),
    ]
    held = told("b</s><s>x")
    assert held[:4] == [("a", ()), ("", ()), ("", ()), ("", ())]
    assert held[4] == ("bc", ((1, "</s>"), (1, "<s>")))


def test_a_stop_string_may_begin_within_a_control_token() -> None:
    answer = Answer(ToyTokenizer().stream(), frozenset(), ["s>b"], 100)
    events = [answer.push(ChosenToken(token)) for token in [ord("a"), EOS, ord("b")]]
    assert [event.text for event in events] == ["a", "", ""]
    assert [control for event in events for control in event.controls] == [(0, "</s>")]
    assert answer.stop_string == "s>b"
