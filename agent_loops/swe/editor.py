"""The tool `file_editor`. It runs inside the sandbox, where a link leads no further than the agent's own access.

`agent_loops.swe.tools` sends this file's text and a request to the sandbox's Python, which may be as old as 3.6 and has
only the standard library. The answer is `{"text": what the agent sees, "undo": how to undo the edit, or null,
"taken_back": whether an edit was undone}`.

A file's text is UTF-8, or UTF-16 if it begins with that encoding's byte order mark. Bytes that are neither are kept
unchanged and shown as U+FFFD.
"""

import hashlib
import json
import os
import shutil
import stat

LARGEST = 4000000  # bytes of a file
LONGEST_LINE = 500
ENTRIES = 200
AROUND = 4  # lines shown before and after an edit
UTF_8 = ("utf-8", "surrogateescape")
UTF_16 = ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))  # byte order marks
UNKNOWN = "\ufffd"


class Refused(Exception):
    """A refused request; the message is the agent's answer."""


def answer(request):
    path = os.path.normpath(os.path.join(os.getcwd(), request["path"]))
    undo, taken_back = None, False
    try:
        if request["command"] == "view":
            text = view(path, request.get("view_range"), request["characters"])
        elif request["command"] == "undo_edit":
            text, taken_back = take_back(path, request), True
        else:
            text, undo = EDITS[request["command"]](path, request)
    except Refused as error:
        text = str(error)
    except OSError as error:
        text = f"{path}: {error.strerror or error}"
    except ValueError as error:  # a path with a NUL character, or a text that no file can hold
        text = f"{path!r}: {error}"
    return {"text": printable(text), "undo": undo, "taken_back": taken_back}


def view(path, lines, characters):
    if os.path.isdir(path):
        if lines:
            raise Refused(f"{path} is a directory: view_range is for files")
        return list_directory(path)
    all_lines = split(read(path)[0])
    first, last = lines or [1, -1]
    last = len(all_lines) if last == -1 else last
    if not all_lines:
        return f"{path} is empty"
    if not 1 <= first <= last or first > len(all_lines):
        raise Refused(f"view_range={lines}: {path} has the lines 1 to {len(all_lines)}")
    last = min(last, len(all_lines))
    shown = excerpt(all_lines, first, last, characters)
    end = first + len(shown) - 1
    head = f"{path}, lines {first} to {end} of {len(all_lines)}"
    more = "\n(cut here: give view_range to see more)" if end < last else ""
    return "{}:\n{}{}".format(head, "\n".join(shown), more)


def excerpt(lines, first, last, characters):
    """Return the lines with their numbers, as many as fit, and at least one."""
    shown = []
    for number in range(first, last + 1):
        line = numbered(number, lines[number - 1])
        characters -= len(line) + 1
        if characters < 0 and shown:
            break
        shown.append(line)
    return shown


def list_directory(path):
    found = []
    for folder, directories, files in os.walk(path):
        depth = os.path.relpath(folder, path).count(os.sep) + (folder != path)
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        names = [name + "/" for name in directories] + [name for name in files if not name.startswith(".")]
        found += [os.path.relpath(os.path.join(folder, name), path) + "/" * name.endswith("/") for name in names]
        if depth >= 1:
            del directories[:]
    found.sort()
    more = f"\n({len(found) - ENTRIES} more)" if len(found) > ENTRIES else ""
    return "{}, two levels deep, without hidden files:\n{}{}".format(path, "\n".join(found[:ENTRIES]), more)


def create(path, request):
    if os.path.lexists(path):
        raise Refused(f"{path} exists already: create is for new files, use str_replace or insert")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write(path, request["file_text"], UTF_8)
    return f"{path} is created", {"created": digest(request["file_text"])}


def str_replace(path, request):
    text, codec = read(path)
    old, new = (as_in(text, request.get(name, "")) for name in ("old_str", "new_str"))
    if not old:
        raise Refused("old_str is empty")
    count = text.count(old)
    if count != 1:
        found = "not in" if not count else f"{count} times in"
        why = f"nothing is replaced: old_str is {found} {path}, and has to be there once, to the letter"
        if not count and UNKNOWN in old and printable(text) != text:
            why += f". It holds {UNKNOWN}, which is shown for bytes that are no UTF-8: leave them out of old_str"
        raise Refused(why)
    if old == new:
        raise Refused("nothing is replaced: old_str and new_str are the same")
    return splice(path, text, codec, text.index(old), old, new, request["characters"])


def insert(path, request):
    (text, codec), after = read(path), request["insert_line"]
    count = len(split(text))
    if not 0 <= after <= count:
        raise Refused(f"insert_line={after}: {path} has {count} lines; 0 is before the first")
    start = 0
    for _ in range(after):
        start = text.find("\n", start) + 1 or len(text)
    end = as_in(text, "\n")
    new = as_in(text, request["new_str"])
    if start and not text[:start].endswith("\n"):  # after a last line without a line break
        new = end + new
    elif not new.endswith(end):
        new += end
    return splice(path, text, codec, start, "", new, request["characters"])


EDITS = {"create": create, "str_replace": str_replace, "insert": insert}


def splice(path, text, codec, start, old, new, characters):
    changed = text[:start] + new + text[start + len(old) :]
    write(path, changed, codec)
    first = text.count("\n", 0, start) + 1
    last = first + new.count("\n")
    lines = split(changed)
    shown = excerpt(lines, max(first - AROUND, 1), min(last + AROUND, len(lines)), characters)
    undo = {"start": start, "old": old, "new": new, "digest": digest(changed)}
    return "{} is changed:\n{}".format(path, "\n".join(shown)), undo


def take_back(path, request):
    text, codec = read(path)
    undo = request["undo"]
    if digest(text) != undo.get("created", undo.get("digest")):
        raise Refused(f"{path} has changed since its last edit here, which is not taken back")
    if "created" in undo:
        os.remove(path)
        return f"{path} is removed: its last edit here created it"
    message, _ = splice(path, text, codec, undo["start"], undo["new"], undo["old"], request["characters"])
    return "The last edit is taken back. " + message


def read(path):
    """Return the text of a file, and the codec that turns it back into the same bytes."""
    kind = os.stat(path)
    if stat.S_ISDIR(kind.st_mode):
        raise Refused(f"{path} is a directory")
    if not stat.S_ISREG(kind.st_mode):  # a pipe or a device would never end
        raise Refused(f"{path} is no regular file")
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise Refused(f"{path} has more than {LARGEST} bytes: use execute_bash")
    for mark, codec in UTF_16:
        if content.startswith(mark):
            try:
                return content.decode(codec), (codec, "strict")
            except UnicodeDecodeError:
                break
    return content.decode(*UTF_8), UTF_8


def write(path, text, codec):
    """Write the whole text or nothing, so that a full disk does not destroy the file."""
    content = text.encode(*codec)
    path = os.path.realpath(path)
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
        if os.path.exists(path):
            shutil.copymode(path, part)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def digest(text):
    return hashlib.sha256(text.encode(*UTF_8)).hexdigest()


def printable(text):
    """Return the text with U+FFFD in place of surrogates, which represent bytes that are not UTF-8."""
    try:
        return text.encode(*UTF_8).decode("utf-8", "replace")
    except UnicodeEncodeError:  # a surrogate that the agent wrote
        return "".join(UNKNOWN if "\ud800" <= letter <= "\udfff" else letter for letter in text)


def split(text):
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def as_in(text, new):
    """Return the agent's text, which uses \\n, with \\r\\n if every line of the file ends so."""
    windows = "\r\n" in text and text.count("\r\n") == text.count("\n")
    return new.replace("\r\n", "\n").replace("\n", "\r\n") if windows else new


def numbered(number, line):
    line = line.rstrip("\r")
    if len(line) > LONGEST_LINE:
        line = f"{line[:LONGEST_LINE]}... ({len(line) - LONGEST_LINE} more characters)"
    return f"{number:6d}\t{line}"


def main(request):
    print(json.dumps(answer(json.loads(request))))
