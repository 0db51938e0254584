# The front of every launch text: what a shell of the machine's does before it becomes a program of ours. It stands in
# no argument and in no file, since what follows holds values. Plain POSIX sh on Linux.
#
# It says `MARK WORDS` on its output: `run PID START GROUP` just before the program starts, or why it does not. What start
# files said before that is not the program's. _og_1 and _og_2 are the mark in two parts, so that the text itself, played
# back by a machine that runs nothing, is not taken for the mark.

_og_stop() {
    printf '%s%s %s\n' "$_og_1" "$_og_2" "$*"
    exit 125
}

# _og_find WORDS: stops unless the first is a program that can be started. The shell's own words do not count.
_og_find() {
    case $1 in
    */*)
        [ -e "$1" ] || _og_stop missing
        [ -f "$1" ] && [ -x "$1" ] || _og_stop forbidden
        return
        ;;
    esac
    _og_ifs=$IFS _og_there=
    IFS=:
    set -f
    for _og_place in ${PATH-/usr/bin:/bin}; do
        if [ -f "${_og_place:-.}/$1" ]; then
            _og_there=1
            [ -x "${_og_place:-.}/$1" ] && _og_there=2 && break
        fi
    done
    set +f
    IFS=$_og_ifs
    case $_og_there in '') _og_stop missing ;; 1) _og_stop forbidden ;; esac
}

# _og_ready ERRORS: says that the program starts, on standard error too if ERRORS is `both`. The shell's name in
# /proc has no parenthesis and no newline.
_og_ready() {
    IFS= read -r _og_stat <"/proc/$$/stat" || _og_stop "blind"
    _og_which=$1
    set -- ${_og_stat##*) }
    set -- "$3" "${20}"
    _og_line="$_og_1$_og_2 run $$ $2 $1"
    printf '%s\n' "$_og_line"
    [ "$_og_which" != both ] || printf '%s\n' "$_og_line" >&2
}
