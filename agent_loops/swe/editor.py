"""What the tool `file_editor` does to files. It runs inside the sandbox: there a link leads no further than the agent.

`agent_loops.swe.tools` sends this file's text and a request to the sandbox's own Python, which may be as old as 3.6 and
has nothing but the standard library. An answer is `{"text": what the agent sees, "undo": how to take the edit back, or
null, "taken_back": whether one was}`.
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


class Refused(Exception):
    """What the agent is told instead."""


def answer(request):
    path = os.path.normpath(os.path.join(os.getcwd(), request["path"]))
    undo, taken_back = None, False
    try:
        if request["command"] == "view":
            text = view(path, request.get("view_range"), request["characters"])
        elif request["command"] == "undo_edit":
            text, taken_back = take_back(path, request["undo"]), True
        else:
            text, undo = EDITS[request["command"]](path, request)
    except Refused as error:
        text = str(error)
    except OSError as error:
        text = f"{path}: {error.strerror or error}"
    except ValueError as error:  # a path with a null character
        text = f"{path!r}: {error}"
    return {"text": text, "undo": undo, "taken_back": taken_back}


def view(path, lines, characters):
    if os.path.isdir(path):
        if lines:
            raise Refused(f"{path} is a directory: view_range is for files")
        return list_directory(path)
    all_lines = split(read(path))
    first, last = lines or [1, -1]
    last = len(all_lines) if last == -1 else last
    if not all_lines:
        return f"{path} is empty"
    if not 1 <= first <= last or first > len(all_lines):
        raise Refused(f"view_range={lines}: {path} has the lines 1 to {len(all_lines)}")
    last = min(last, len(all_lines))
    shown, room = [], characters
    for number in range(first, last + 1):
        line = numbered(number, all_lines[number - 1])
        room -= len(line) + 1
        if room < 0 and shown:
            break
        shown.append(line)
    end = first + len(shown) - 1
    head = f"{path}, lines {first} to {end} of {len(all_lines)}"
    more = "\n(cut here: give view_range to see more)" if end < last else ""
    return "{}:\n{}{}".format(head, "\n".join(shown), more)


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
    write(path, request["file_text"])
    return f"{path} is created", {"created": digest(request["file_text"])}


def str_replace(path, request):
    text = read(path)
    old, new = (as_in(text, request.get(name, "")) for name in ("old_str", "new_str"))
    if not old:
        raise Refused("old_str is empty")
    count = text.count(old)
    if count != 1:
        found = "not in" if not count else f"{count} times in"
        raise Refused(f"nothing is replaced: old_str is {found} {path}, and has to be there once, to the letter")
    if old == new:
        raise Refused("nothing is replaced: old_str and new_str are the same")
    return splice(path, text, text.index(old), old, new)


def insert(path, request):
    text, after = read(path), request["insert_line"]
    count = len(split(text))
    if not 0 <= after <= count:
        raise Refused(f"insert_line={after}: {path} has {count} lines; 0 is before the first")
    start = 0
    for _ in range(after):
        start = text.find("\n", start) + 1 or len(text)
    end = as_in(text, "\n")
    new = as_in(text, request["new_str"])
    if start and not text[:start].endswith("\n"):  # after a last line without an end
        new = end + new
    elif not new.endswith(end):
        new += end
    return splice(path, text, start, "", new)


EDITS = {"create": create, "str_replace": str_replace, "insert": insert}


def splice(path, text, start, old, new):
    changed = text[:start] + new + text[start + len(old) :]
    write(path, changed)
    first = text.count("\n", 0, start) + 1
    last = first + new.count("\n")
    lines = split(changed)
    around = range(max(first - AROUND, 1), min(last + AROUND, len(lines)) + 1)
    shown = "\n".join(numbered(number, lines[number - 1]) for number in around)
    undo = {"start": start, "old": old, "new": new, "digest": digest(changed)}
    return f"{path} is changed:\n{shown}", undo


def take_back(path, undo):
    text = read(path)
    if digest(text) != undo.get("created", undo.get("digest")):
        raise Refused(f"{path} has changed since its last edit here, which is not taken back")
    if "created" in undo:
        os.remove(path)
        return f"{path} is removed: its last edit here created it"
    start = undo["start"]
    message, _ = splice(path, text, start, undo["new"], undo["old"])
    return "The last edit is taken back. " + message


def read(path):
    kind = os.stat(path)
    if stat.S_ISDIR(kind.st_mode):
        raise Refused(f"{path} is a directory")
    if not stat.S_ISREG(kind.st_mode):  # a pipe or a device would never end
        raise Refused(f"{path} is no regular file")
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise Refused(f"{path} has more than {LARGEST} bytes: use execute_bash")
    return content.decode("utf-8", "surrogateescape")


def write(path, text):
    """The whole text or nothing: a full disk must not cost the file."""
    path = os.path.realpath(path)
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        if os.path.exists(path):
            shutil.copymode(path, part)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def digest(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def split(text):
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def as_in(text, new):
    """The agent writes \\n; a file whose every line ends in \\r\\n stays so."""
    windows = "\r\n" in text and text.count("\r\n") == text.count("\n")
    return new.replace("\r\n", "\n").replace("\n", "\r\n") if windows else new


def numbered(number, line):
    line = line.rstrip("\r")
    if len(line) > LONGEST_LINE:
        line = f"{line[:LONGEST_LINE]}... ({len(line) - LONGEST_LINE} more characters)"
    return f"{number:6d}\t{line}"


def main(request):
    print(json.dumps(answer(json.loads(request))))
