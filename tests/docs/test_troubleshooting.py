"""The troubleshooting page explains every message of the code, and no message that is no more."""

from tests.docs.messages import FEWEST, PAGE, entries, explains, fixed_words, messages


def test_messages_are_found():
    texts = [message.text for message in messages()]
    assert len(texts) > 150
    for known in (
        "no recipe at …; expected a YAML file (see the folder recipes/)",
        "'…' is null",
        "student.dtype is float16, whose range is too narrow for gradients and Adam's moments; use float32, with "
        "train.precision: bfloat16 to save time",
    ):
        assert known in texts


def test_every_message_has_an_entry():
    known = entries()
    missing = [m for m in messages() if not any(explains(entry, m.text) for entry in known)]
    listed = "\n".join(f"  {m.where}\n    {m.text}" for m in missing)
    assert not missing, (
        f"{len(missing)} messages of the code have no entry in {PAGE}. For each of them, add its leading words (with … "
        f"for what differs) to the first cell of a row of a 'message' table there, beside what it means and what to "
        f"do:\n{listed}"
    )


def test_every_entry_is_a_message_of_the_code():
    texts = [message.text for message in messages()]
    stale = [entry for entry in entries() if not any(explains(entry, text) for text in texts)]
    assert not stale, f"{PAGE} explains messages that the code does not give; mend or remove: {stale}"


def test_entries_say_enough_to_be_found():
    assert not [entry for entry in entries() if len(fixed_words(entry)) < FEWEST]
