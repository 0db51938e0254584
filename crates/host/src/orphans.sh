# What was left on a host: `sh -c SCRIPT sh VERB ROOT …`, ROOT being the directory of all task directories.
#
#   list MOST        task directories whose ids do not stand on standard input (one a line), at most MOST
#   one ID           this one
#   measure SECONDS  the sizes of those whose ids stand on standard input, as many as are counted in that time
#
# `list` and `one` say `task CHANGED LOGIN MARK ID` for each: when it last changed (seconds since 1970, of the host's
# clock), 1 if there may be a login in it, the run mark of its guard or `-`. `list` says `now SECONDS` first. `measure`
# says `size KILOBYTES ID`. A link, what belongs to somebody else, what has neither workdir nor guard and what is not
# named as a task directory is nothing of ours.
#
# Besides sh: cat date du id stat timeout, of GNU or busybox.
export LC_ALL=C
verb=$1 root=$2 word=$3
self=$(id -u)
newline='
'

# True unless it is certain that there is no login: below a workdir, or what a restore has put beside it.
login() {
    for _file in "$1"/*/home/.codex/auth.json "$1"/.[!.]*/home/.codex/auth.json; do
        [ -s "$_file" ] || [ -L "$_file" ] && return 0
    done
    # What cannot be looked into.
    for _dir in "$1" "$1"/* "$1"/*/home "$1"/*/home/.codex \
        "$1"/.[!.]* "$1"/.[!.]*/home "$1"/.[!.]*/home/.codex; do
        [ -d "$_dir" ] || continue
        [ -r "$_dir" ] && [ -x "$_dir" ] || return 0
    done
    return 1
}

tell() {
    _task=$root/$1
    case $1 in '' | . | .. | *[!A-Za-z0-9._-]*) return 1 ;; esac
    [ -d "$_task" ] && [ ! -L "$_task" ] || return 1
    [ -d "$_task/workdir" ] || [ -d "$_task/guard" ] || return 1
    # Owner and time of the directory itself, and times of what changes within.
    set -- "$1" $(stat -c '%u %Y' -- "$_task" 2>/dev/null) \
        $(stat -c %Y -- "$_task/workdir" "$_task/guard/heartbeat" 2>/dev/null)
    [ "${2-}" = "$self" ] || return 1
    _id=$1
    shift 2
    _newest=0
    for _time in "$@"; do
        [ "$_time" -gt "$_newest" ] && _newest=$_time
    done
    _login=0
    login "$_task" && _login=1
    _mark=
    { read -r _mark _rest <"$_task/guard/run"; } 2>/dev/null
    case $_mark in '' | *[!A-Za-z0-9._:-]*) _mark=- ;; esac
    echo "task $_newest $_login $_mark $_id"
}

case $verb in
list)
    known=$newline$(cat)$newline
    echo "now $(date +%s)"
    # Ids begin with a dot in nobody's hands but a tester's, and are told all the same.
    for path in "$root"/* "$root"/.[!.]*; do
        id=${path##*/}
        case $known in *"$newline$id$newline"*) continue ;; esac
        [ "$word" -gt 0 ] || break
        tell "$id" && word=$((word - 1))
    done
    ;;
one)
    tell "$word"
    ;;
measure)
    end=$(($(date +%s) + word))
    while IFS= read -r id; do
        left=$((end - $(date +%s)))
        [ "$left" -gt 0 ] || break
        size=$(timeout "$left" du -skx -- "$root/$id" 2>/dev/null </dev/null)
        size=${size%%[!0-9]*}
        [ -n "$size" ] && echo "size $size $id"
    done
    ;;
esac
exit 0
