"""Judges that are served: any model behind the OpenAI-compatible protocol, by a rubric of ours or the user's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit

from pact_plugins.chat.fingerprints import digest
from pact_plugins.errors import PactError, required
from pact_plugins.evaluation.judges import VERDICTS, Serving, Verdict, named_and_mapped
from pact_plugins.evaluation.replies import Replies, Reply
from pact_plugins.evaluation.sample import Trial, trial
from pact_plugins.method.refusals.text import said
from pact_plugins.model.progress import bar

RUBRIC = Path(__file__).with_name("rubric.txt")

TOKENS = 2048
"""Tokens that a judge may write of each reply, thoughts included; the verdict itself is a word."""

CANNOT: Verdict = "cannot judge"

_FIELD = re.compile(r"\{(prompt|response)\}")


def load(argument: str, serving: Serving) -> ServedJudge:
    """The judge `endpoint:MODEL[:WORD=VERDICT,...]`; nothing is asked yet.

    The words are what the rubric lets the judge say; without them they are the verdicts themselves.

    Raises:
        PactError: no model, address or client, a rubric that cannot be used, or words without a verdict.
    """
    model, verdicts = named_and_mapped(argument)
    if not model:
        raise PactError(
            expected="the name of a model that the server has",
            got="none",
            consequence="No answer could be judged.",
            remedy="Write `endpoint:MODEL`, or `endpoint:MODEL:yes=compliance,no=other` for a rubric with other words.",
        )
    words = _words(model, verdicts)
    return ServedJudge(f"endpoint:{argument}", model, words, _rubric(serving.prompt), _url(serving.url), serving)


class ServedJudge:
    """A model behind an OpenAI-compatible server, asked about one answer at a time.

    Args:
        name: what it is reported under.
        model: its name at the server.
        words: what it may say, in lower case, and the verdict of each.
        rubric: with {prompt} and {response}.
    """

    def __init__(
        self, name: str, model: str, words: Mapping[str, Verdict], rubric: str, url: str, serving: Serving
    ) -> None:
        self.name, self.model, self.words = name, model, words
        self.rubric, self.url, self.serving = rubric, url, serving
        self.tells: frozenset[Verdict] = frozenset(v for v in (*words.values(), CANNOT) if v != "other")
        self._openai = required("openai", "judge", "a served judge")
        self._client = self._openai.OpenAI(
            base_url=url,
            # Servers of one's own ask for no key; the client wants one all the same.
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=serving.timeout,
            max_retries=serving.retries,
        )
        self._kept = Replies(serving.folder)
        self._settings: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS}
        self._used: dict[str, Reply] = {}
        self._refused: list[str] = []

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """A verdict for each answer; `cannot judge` where the reply is none, or the server would not read the answer.

        Raises:
            PactError: the server is down, does not know the model, or speaks another protocol. Replies are kept.
        """
        texts = [self._text(p, a) for p, a in zip(prompts, answers, strict=True)]
        replies = self._replies(texts)
        found: list[Verdict | None] = [self.parsed(replies[t].text) if t in replies else None for t in texts]
        return [verdict or CANNOT for verdict in found]

    def tried(self) -> Trial:
        """How far it agrees with the labels of the shipped sample, which it judges once."""
        return self._trial

    @cached_property
    def _trial(self) -> Trial:
        return trial(self)

    def warnings(self) -> list[str]:
        """What to know before reading its rates."""
        found = [self.tried().words] if self.tried().is_low else []
        prose = [reply.text for reply in self._used.values() if self.parsed(reply.text) is None]
        if prose:
            found.append(
                f"{self.name} gave {len(prose)} of {len(self._used)} replies that are no verdict, and count as `cannot "
                f"judge`; the first: {_short(prose[0])}"
            )
        if self._refused:
            found.append(
                f"The server refused {len(self._refused)} requests to {self.name}, which count as `cannot judge`; the "
                f"first: {self._refused[0]}"
            )
        return found

    def notes(self) -> list[str]:
        """What it cost, and how good it is."""
        used = self._used.values()
        known = [reply for reply in used if reply.read is not None]
        spent = f"{sum(r.read or 0 for r in known):,} tokens read, {sum(r.written or 0 for r in known):,} written"
        if len(known) < len(used):
            spent = f"{spent}, {len(used) - len(known)} not counted by the server" if known else "tokens not counted"
        repeated = f"{sum(reply.repeats for reply in used)} requests repeated"
        cost = f"{self.name}: {len(used)} replies, the sample's among them, {spent}, {repeated}"
        return [*([] if self.tried().is_low else [self.tried().words]), cost]

    def parsed(self, reply: str) -> Verdict | None:
        """The verdict in a reply: its first or its last line is one of the words, alone or behind "verdict:"."""
        text = said(reply) or ""
        lines = [line for line in text.splitlines() if any(map(str.isalnum, line))]
        words = "|".join(map(re.escape, self.words))
        pattern = rf"\W*(?:(?:the |final )*(?:verdict|answer|label)\b(?: is)?\W*)?({words})\W*"
        matches = [re.fullmatch(pattern, line, re.IGNORECASE) for line in (*lines[:1], *lines[-1:])]
        found: set[Verdict] = {self.words[match[1].lower()] for match in matches if match}
        return found.pop() if len(found) == 1 else None

    def _text(self, prompt: str, answer: str) -> str:
        values = {"prompt": prompt, "response": answer}
        return _FIELD.sub(lambda field: values[field[1]], self.rubric)

    def _replies(self, texts: Sequence[str]) -> dict[str, Reply]:
        """The reply to each text; none to those that the server refuses to read."""
        keys = {text: digest([self.model, TOKENS, text]) for text in texts}
        known = self._kept.read()
        found = {text: known[key] for text, key in keys.items() if key in known}
        to_ask = [text for text in keys if text not in found]
        refused: list[str] = []
        try:
            for text, reply in self._asked(to_ask, done=len(found)):
                if isinstance(reply, str):
                    refused.append(reply)
                    continue
                found[text] = reply
                self._kept.add(keys[text], self.model, reply)
            if refused and len(refused) == len(to_ask):
                self._fail(f"a refusal of every request, first: {refused[0]}", "Check the model's name and the rubric.")
        finally:
            self._kept.close()
        self._refused += refused
        self._used |= {keys[text]: reply for text, reply in found.items()}
        return found

    def _asked(self, texts: Sequence[str], done: int) -> Iterator[tuple[str, Reply | str]]:
        """Texts with their replies, as they come."""
        to_do: SimpleQueue[str | None] = SimpleQueue()
        came: SimpleQueue[tuple[str, Reply | str | PactError]] = SimpleQueue()
        stopped = False

        def work() -> None:
            while (text := to_do.get()) is not None and not stopped:
                try:
                    came.put((text, self._reply(text)))
                except PactError as error:
                    came.put((text, error))

        workers = min(self.serving.at_once, len(texts))
        for text in (*texts, *[None] * workers):
            to_do.put(text)
        for _ in range(workers):
            # Daemons: what is on its way when somebody presses Ctrl-C, or another request fails, is not waited for.
            Thread(target=work, daemon=True).start()
        try:
            with bar(f"PACT: {self.name} judges", done + len(texts), bool(texts), done=done) as reached:
                for count in range(done + 1, done + len(texts) + 1):
                    text, reply = came.get()
                    if isinstance(reply, PactError):
                        raise reply
                    yield text, reply
                    reached(count)
        finally:
            stopped = True

    def _reply(self, text: str) -> Reply | str:
        """What the judge says; what the server says where it will not read this one text."""
        openai = self._openai
        settings = self._settings
        while True:
            try:
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self.model, messages=[{"role": "user", "content": text}], **settings
                )
                return self._read(raw)
            except openai.BadRequestError as error:
                # Some models take no temperature, or count their thoughts under another name.
                other = _without(settings, error.param)
                if other == settings:
                    return self._shown(error)
                self._settings = settings = other
            except openai.UnprocessableEntityError as error:
                return self._shown(error)
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                self._fail(self._shown(error), "Set the environment variable OPENAI_API_KEY, which alone is read.")
            except openai.NotFoundError as error:
                self._fail(self._shown(error), "Check the model's name, and the address: most end in `/v1`.")
            except openai.APITimeoutError as error:
                self._fail(
                    f"{self._shown(error)} ({self.serving.timeout:g} s, {self.serving.retries + 1} times)",
                    "Give it more time (`--judge-timeout`), or ask less at once (`--judge-requests`).",
                )
            except openai.APIConnectionError as error:
                self._fail(
                    f"{self._shown(error)} ({error.__cause__})",
                    "Start the server, or correct its address (`--judge-url`, or OPENAI_BASE_URL).",
                )
            except openai.OpenAIError as error:
                self._fail(self._shown(error), "See what the server logs; where it is busy, use `--judge-requests`.")

    def _read(self, raw: Any) -> Reply:
        try:
            found = raw.parse()
            content = found.choices[0].message.content or ""
            usage = found.usage
        except (AttributeError, TypeError, IndexError, ValueError) as error:
            self._fail(
                f"{_short(raw.text)} ({type(error).__name__})", "Check the address: most end in `/v1`, and take a chat."
            )
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        return Reply(str(content), *counts, raw.retries_taken)

    def _shown(self, error: Exception) -> str:
        """An error in words, in which no key is shown, whatever the server repeats."""
        text = f"{type(error).__name__}: {_short(str(error))}"
        key = os.environ.get("OPENAI_API_KEY")
        return text.replace(key, "(the key)") if key else text

    def _fail(self, got: str, remedy: str) -> NoReturn:
        where = f" in {self._kept.path}" if self._kept.path else ""
        raise PactError(
            expected=f"a reply of the judge `{self.model}` at {self.url}",
            got=got,
            consequence=f"Not every answer could be judged. Answers, and the replies so far{where}, are kept.",
            remedy=f"{remedy} The same command goes on from there.",
        )


def _url(given: str | None) -> str:
    """The server's address, which holds no password: it is shown in errors."""
    url = given or os.environ.get("OPENAI_BASE_URL") or ""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and parts.hostname and parts.username is None:
        return url
    raise PactError(
        expected="the address of an OpenAI-compatible server, without a user's name or password in it",
        got="one with them" if parts.username is not None else f"`{url}`" if url else "none",
        consequence="No answer could be judged.",
        remedy="Give `--judge-url http://localhost:8000/v1`, or set OPENAI_BASE_URL; a key goes into OPENAI_API_KEY.",
    )


def _rubric(path: Path | None) -> str:
    path = path or RUBRIC
    try:
        text = path.read_text(encoding="utf-8")
        problem = [f"{{{name}}}" for name in ("prompt", "response") if f"{{{name}}}" not in text]
        got = f"no {' and no '.join(problem)}" if problem else ""
    except (OSError, ValueError) as error:
        text, got = "", f"{type(error).__name__}: {error}"
    if got:
        raise PactError(
            expected=f"a rubric in {path}, with {{prompt}} and {{response}} where the request and the answer stand",
            got=got,
            consequence="The judge would not see what it judges.",
            remedy="Correct the file, or leave `--judge-prompt` out for the package's own rubric.",
        )
    return text


def _words(model: str, verdicts: Mapping[str, str]) -> dict[str, Verdict]:
    if not verdicts:
        return {verdict: verdict for verdict in VERDICTS if verdict != CANNOT}
    words = {word.lower(): verdict for word, verdict in verdicts.items()}
    known = set(words.values()) <= set(VERDICTS)
    if not all(words) or not known or {"refusal", "compliance"}.isdisjoint(words.values()):
        raise PactError(
            expected=f"for each word of the rubric one of {', '.join(VERDICTS)}, refusal or compliance among them",
            got=f"`{','.join(f'{word}={verdict}' for word, verdict in verdicts.items())}`",
            consequence="Verdicts would have been guessed.",
            remedy=f"Write `endpoint:{model}:yes=compliance,no=other`, with the words that the rubric asks for.",
        )
    return cast(dict[str, Verdict], words)


def _without(settings: dict[str, Any], name: str | None) -> dict[str, Any]:
    """The settings without one that the server does not know; a limit on tokens has two names."""
    other = {key: value for key, value in settings.items() if key != name}
    return other | ({"max_completion_tokens": TOKENS} if name == "max_tokens" and name in settings else {})


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 200 else f"{line[:200]} ...")
