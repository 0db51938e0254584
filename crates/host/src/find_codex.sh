# Finds the native codex program of a host: `sh -c SCRIPT sh NAMED`, NAMED being an operator's absolute path, or
# nothing.
#
# Says one word, one line about it, and a path, which is the rest whatever is in it:
#
#   found STAMP PATH       a native program; the stamp changes when its file does
#   unknown '' ''          no shell knows it
#   word WORD ''           a shell knows it as something that is no file
#   missing '' PATH        nothing is there
#   broken WHY PATH        it cannot be looked at
#   plain '' PATH          no executable file
#   script '' PATH         a script that is not npm's launcher
#   foreign '' PATH        npm's launcher, on a kind of machine for which there is no native program
#   empty FIRST PATH       npm's launcher without its program, which was looked for at FIRST first
#
# Besides sh: head readlink stat uname, of GNU or busybox.
export LC_ALL=C
set -f
say() {
    printf '%s\n%s\n%s' "$1" "$2" "$3"
    exit 0
}

# Its last line, because a profile may print what it likes.
last() {
    _l=${1##*"
"}
    printf '%s' "${_l%"$(printf '\r')"}"
}

runs() {
    [ -f "$1" ] && [ -x "$1" ]
}

named=$1
if [ -z "$named" ]; then
    word=
    # A login shell first, so that a PATH from the user's profile counts (S-244), and then a plain one: a profile may
    # set PATH anew (Debian's does) and so lose what the service itself was started with.
    for flag in -lc -c; do
        said=$(sh "$flag" 'command -v codex' </dev/null 2>/dev/null) || continue
        word=$(last "$said")
        case $word in
        /*)
            named=$word
            break
            ;;
        esac
    done
    if [ -z "$named" ]; then
        [ -z "$word" ] && say unknown '' ''
        say word "$word" ''
    fi
fi

if ! [ -e "$named" ]; then
    why=$(stat -L -- "$named" 2>&1)
    case $why in
    *'No such file or directory' | '') say missing '' "$named" ;;
    *) say broken "${why##*: }" "$named" ;;
    esac
fi
path=$(readlink -f -- "$named") || say broken 'its links cannot be followed' "$named"
[ -f "$path" ] || say plain '' "$path"
start=$(head -c 2 -- "$path" 2>&1) || say broken "${start##*: }" "$path"

if [ "$start" = '#!' ]; then
    case $path in
    */@openai/codex/bin/codex.js) ;;
    *) say script '' "$path" ;;
    esac
    # As the launcher itself has them.
    case $(uname -sm) in
    'Linux x86_64') package=codex-linux-x64 triple=x86_64-unknown-linux-musl ;;
    'Linux aarch64') package=codex-linux-arm64 triple=aarch64-unknown-linux-musl ;;
    *) say foreign '' "$path" ;;
    esac
    # Where node would find the launcher's native package: in a `node_modules` of the package itself, then of each
    # directory above it; older launchers carry the program within.
    own=${path%/bin/codex.js} first= native=
    above=$own
    while :; do
        case $above in
        */node_modules) ;;
        *)
            native=$above/node_modules/@openai/$package/vendor/$triple/bin/codex
            first=${first:-$native}
            runs "$native" && break
            ;;
        esac
        if [ -z "$above" ]; then
            native=$own/vendor/$triple/bin/codex
            runs "$native" || say empty "$first" "$path"
            break
        fi
        above=${above%/*}
    done
    path=$native
fi
runs "$path" || say plain '' "$path"
stamp=$(stat -L -c '%d %i %s %y' -- "$path" 2>&1) || say broken "${stamp##*: }" "$path"
say found "$stamp" "$path"
