#!/bin/sh
# A benchmark that measures nothing: prints the row in $OTHER_ROWS/NAME.jsonl, where NAME is pp with -p, tg with -n, asr with --audio.
# Every call is a line of $OTHER_ROWS/calls.
[ "$2" = --help ] && exit 0
echo "$*" >> "$OTHER_ROWS/calls"
case " $* " in
*" --audio "*) cat "$OTHER_ROWS/asr.jsonl" ;;
*" -p 0 "*) cat "$OTHER_ROWS/tg.jsonl" ;;
*) cat "$OTHER_ROWS/pp.jsonl" ;;
esac
