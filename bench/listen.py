"""What a speech recogniser writes down of wave files, and its error rates where the texts are known.

python bench/listen.py FOLDER --listener faster-whisper:MODEL [--texts metadata.csv] [--limit 100]
       [--language en] [--device cpu] [--shuffle] [--json heard.json]

FOLDER holds wav, flac, ogg or mp3 files. The texts come from a table `file|text`, or from a .txt beside
each file. Without texts the transcripts alone are printed. --shuffle also gives the rates against other
files' texts: what a listener scores on speech that says something else.
"""
import argparse
import json
import random
import time
from pathlib import Path

from workbench.parts.shared.folders import walk
from workbench.parts.speech.files import recordings, uid_of
from workbench.parts.speech.scores import intelligibility, listener
from workbench.parts.speech.transcripts import read_metadata, read_text, tidy
from workbench.parts.speech.wave import read_wave


def texts_of(folder, table):
    "uid -> text, of a table or of the .txt files."
    if table:
        return {uid_of(entry["path"]): entry["text"]
                for _, entry, why in read_metadata(Path(table)) if not why}
    return {uid_of(f): tidy(read_text(folder / f)) for f in walk(folder) if f.endswith(".txt")}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--listener", required=True)
    parser.add_argument("--texts", default="")
    parser.add_argument("--language", default="en")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=0, help="a sample of so many files, always the same")
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    files = {uid: names[0] for uid, names in recordings(walk(args.folder)).items()}
    texts = texts_of(args.folder, args.texts)
    uids = sorted(set(files) & set(texts) if texts else files)
    if not uids:
        parser.error(f"no recording in {args.folder}" + " has a text" * bool(texts))
    if args.limit:
        uids = sorted(random.Random(0).sample(uids, min(args.limit, len(uids))))
    listen = listener(args.listener, args.language, args.device)
    heard, rows, seconds, started = [], [], 0.0, time.perf_counter()
    for uid in uids:
        wave, facts = read_wave(args.folder / files[uid], 16000)
        heard += listen([wave], 16000)
        seconds += facts["seconds"]
        row = {"uid": uid, "heard": heard[-1]} | ({"text": texts[uid]} if texts else {})
        rows.append(row)
        print(f"{uid}\n  heard: {row['heard']}" + (f"\n  text:  {row['text']}" if texts else ""))
    out = {"files": len(uids), "seconds": round(seconds, 1),
           "took_s": round(time.perf_counter() - started, 1)}
    if texts:
        said = [texts[uid] for uid in uids]
        out |= intelligibility(said, heard, args.language)
    if texts and args.shuffle:
        other = said[1:] + said[:1] if len(said) < 3 else random.Random(1).sample(said, len(said))
        out |= {f"shuffled_{k}": v for k, v in intelligibility(other, heard, args.language).items()}
    print(json.dumps(out))
    if args.json:
        args.json.write_text(json.dumps(out | {"rows": rows}, ensure_ascii=False, indent=1), encoding="utf8")


if __name__ == "__main__":
    main()
