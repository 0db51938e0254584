# The hand: answers questions about files, one after the other, each a few lines of shell on standard input.
#
# Plain POSIX sh on Linux; besides it: chmod dd find ln mkdir mv rm rmdir stat sync, of GNU or busybox. The words of a
# question were quoted by us, its payload follows it. An answer is a body, then a line of its own: a newline, the question's
# nonce, a word and facts. Where the word is not `ok`, the body's end is what a program had to say about it.
#
# These are the functions; questions.sh asks for them. Standard output is 5 and standard error 6 where they are caught.
#
# Never through a link: a directory is entered segment by segment, and after each the shell is where it must be or refuses.
# From then on it holds the directory itself, so what others rename does not matter; everything is done to ./name there.

LC_ALL=C
export LC_ALL
umask 077
exec 5>&1 6>&2
nl='
'

# What this machine's dd and stat can do; the GNU ones open without following a link and look at what is open.
gnu=
dd iflag=nofollow,nonblock,skip_bytes,count_bytes if=/proc/self/stat of=/dev/null count=1 2>/dev/null && gnu=1
bare=
{ [ "$(stat -c %F - </dev/null 2>/dev/null)" = 'character special file' ] && bare=1; } 2>/dev/null

# answer WORD [FACT …]
answer() {
    said="$*"
}

# skip N: takes the payload of a question that could not be done.
skip() {
    take "$1" >/dev/null
}

# take N: copies exactly N bytes of payload to standard output. A block is read whole before any of it is written.
take() {
    [ "$1" -lt 1048576 ] || dd bs=1048576 count=$(($1 / 1048576)) iflag=fullblock status=none 2>/dev/null || return
    [ $(($1 % 1048576)) = 0 ] || dd bs=$(($1 % 1048576)) count=1 iflag=fullblock status=none 2>/dev/null
}

# step NAME: enters a directory of the present one. $made is set where missing ones are to be made.
step() {
    [ "$PWD" = / ] && _above= || _above=$PWD
    if ! [ -d "./$1" ] && [ -n "$made" ] && ! [ -L "./$1" ] && ! [ -e "./$1" ]; then
        # Somebody else may be quicker.
        mkdir "./$1" 2>&1 || [ -d "./$1" ] || { answer failed; return 1; }
    fi
    if [ -L "./$1" ]; then
        answer link
        return 1
    fi
    if ! [ -d "./$1" ]; then
        answer missing
        return 1
    fi
    cd -P "./$1" 2>&1 || { answer failed; return 1; }
    # A link that was put here between the look and the step leads to a place of another name.
    [ "$PWD" = "$_above/$1" ] || { answer link; return 1; }
}

# enter ABOVE TASK [SEGMENT …]: links above the task directory are the operator's own.
enter() {
    cd -P "$1" 2>/dev/null || { answer missing; return 1; }
    shift
    _made=$made
    made=
    for _segment; do
        step "$_segment" || return 1
        # The task directory itself is made by `create` alone.
        made=$_made
    done
}

# look NAME: there must be a regular file.
look() {
    if [ -L "./$1" ]; then
        answer irregular
    elif [ -f "./$1" ]; then
        return 0
    elif [ -e "./$1" ]; then
        answer irregular
    else
        answer missing
    fi
    return 1
}

# facts NAME: looks at the file that is open as standard input, and whether it is the one called NAME: it is another one
# where a link, or a new file, took the name's place meanwhile.
facts() {
    _format='%d:%i:%.9W|%s|%f'
    if [ -n "$bare" ]; then
        _facts=$(stat -c "$_format" "./$1" - 2>&1) || return
        named=${_facts%%"$nl"*}
        open=${_facts#*"$nl"}
    else
        _format='%d:%i|%s|%f'
        named=$(stat -c "$_format" "./$1" 2>&1) || return
        open=$(stat -L -c "$_format" /proc/self/fd/0 2>&1) || return
    fi
    identity=${open%%|*}
    [ "$identity" = "${named%%|*}" ] && [ $((0x${named##*|} & 0xf000)) = $((0x8000)) ] || return 1
    open=${open#*|}
    len=${open%%|*}
}

# part OFFSET COUNT: a part of standard input.
part() {
    if [ -n "$gnu" ]; then
        dd bs=65536 iflag=skip_bytes,count_bytes,fullblock skip="$1" count="$2" 2>/dev/null
    else
        tail -c +$(($1 + 1)) 2>/dev/null | head -c "$2" 2>/dev/null
    fi
}

# do_read OFFSET COUNT LIMIT NAME ABOVE TASK …: a file longer than LIMIT is not read.
do_read() {
    _offset=$1 _count=$2 _limit=$3 _name=$4
    shift 4
    enter "$@" || return
    # A file that is replaced while we look is looked at again.
    for _try in 1 2 3 4 5 6 7 8; do
        look "$_name" || return
        [ -r "./$_name" ] || { printf 'Permission denied'; answer failed; return; }
        {
            if facts "$_name"; then
                if [ "$_limit" -ge 0 ] && [ "$len" -gt "$_limit" ]; then
                    answer large "$len"
                elif [ "$_offset" -ge "$len" ] || part "$_offset" "$_count"; then
                    answer ok "$identity" "$len"
                else
                    answer failed
                fi
                return
            fi
        } <"./$_name" 2>/dev/null
    done
    answer busy
}

do_info() {
    _name=$1
    shift
    enter "$@" || return
    look "$_name" || return
    _info=$(stat -c '%s %f' "./$_name" 2>&1) && { answer ok "$_info"; return; }
    [ -e "./$_name" ] && { printf %s "$_info"; answer failed; return; }
    answer missing
}

# do_write LEN MODE TEMPORARY NAME ABOVE TASK …: MODE is what the umask leaves of 666, or a mode that chmod has to give.
do_write() {
    _len=$1 _mode=$2 _temp=$3 _name=$4 _taken=
    shift 4
    made=1
    if enter "$@"; then
        umask "${_mode%:*}"
        set -C
        {
            set +C
            umask 077
            _taken=1
            # One that reads on keeps the questions behind this one in step.
            if [ "$_len" -le 1048576 ]; then
                [ "$_len" = 0 ] || dd bs="$_len" count=1 iflag=fullblock status=none 2>&1 >&3
            else
                take "$_len" | { cat 2>&1 >&3 || { cat >/dev/null; false; }; }
            fi && { [ -z "${_mode#*:}" ] || chmod "${_mode#*:}" /proc/self/fd/3 2>&1; } &&
                mv -fT "./$_temp" "./$_name" 2>&1 && answer ok
        } 3>"./$_temp"
        set +C
        umask 077
        case $said in
        ok) ;;
        *)
            answer failed
            rm -f "./$_temp"
            ;;
        esac
    fi
    [ -n "$_taken" ] || skip "$_len"
}

do_append() {
    _len=$1 _name=$2 _taken=
    shift 2
    made=1
    if enter "$@"; then
        # Made first and by itself: an opening that makes files would make one through a link as well.
        [ -e "./$_name" ] || [ -L "./$_name" ] || { set -C; { true; } 3>"./$_name"; set +C; }
        if look "$_name"; then
            _taken=1
            if [ -n "$gnu" ]; then
                take "$_len" | {
                    dd of="./$_name" bs=65536 oflag=append,nofollow,nonblock conv=notrunc,nocreat status=none 2>&1 ||
                        { cat >/dev/null; false; }
                }
            else
                take "$_len" | { cat 2>&1 >>"./$_name" || { cat >/dev/null; false; }; }
            fi && answer ok || answer failed
        fi
    fi
    [ -n "$_taken" ] || skip "$_len"
}

# do_rename OLD NEW ENTER-OLD ENTER-NEW: the old directory is held open while the new one is entered.
do_rename() {
    _old=$1 _new=$2
    eval "$3" || return
    [ -e "./$_old" ] || [ -L "./$_old" ] || { answer missing; return; }
    {
        eval "$4" || return
        mv -fT "/proc/self/fd/4/$_old" "./$_new" 2>&1 && answer ok
    } 4<.
}

do_remove() {
    _name=$1
    shift
    enter "$@" || return
    answer ok
    if [ -d "./$_name" ] && ! [ -L "./$_name" ]; then
        rmdir "./$_name" 2>&1 && return
    else
        rm -f "./$_name" 2>&1 && return
    fi
    [ -e "./$_name" ] || [ -L "./$_name" ] || return
    answer failed
}

do_make_dir() {
    made=1
    enter "$@" && answer ok
}

do_exists() {
    enter "$@" && answer ok
}

# do_link TARGET TEMPORARY NAME ABOVE TASK …
do_link() {
    _target=$1 _temp=$2 _name=$3
    shift 3
    made=1
    enter "$@" || return
    if ln -s -- "$_target" "./$_temp" 2>&1 && mv -fT "./$_temp" "./$_name" 2>&1; then
        answer ok
    else
        rm -f "./$_temp"
        answer failed
    fi
}

# do_list ABOVE TASK …: the paths of all regular files, each ending in NUL; behind an empty one what find had to say.
do_list() {
    enter "$@" || return
    _words=$(find -P . -type f -print0 2>&1 >&5) || printf '\0%s' "$_words"
    answer ok
}

# wipe NAME: removes whatever is there. Directories that deny their owner are opened up and tried again (S-069).
wipe() {
    for _pass in 1 2 3 4 5; do
        _words=$(rm -rf "./$1" 2>&1 | tail -n 1)
        [ -e "./$1" ] || [ -L "./$1" ] || return 0
        find -P "./$1" -type d ! -perm -700 -exec chmod u+rwx {} \; 2>/dev/null
    done
    printf '%s' "$_words"
    answer failed
    return 1
}

# claim WHAT PATH: makes a directory (0700), or checks that what is there is ours alone: who owns it could put things of
# his own where we look for ours.
claim() {
    if ! [ -e "$2" ] && ! [ -L "$2" ]; then
        mkdir -p "$2" 2>&1 || [ -d "$2" ] || { answer failed; return 1; }
    fi
    if [ -L "$2" ]; then
        answer root "$1" link
    elif ! [ -d "$2" ]; then
        answer root "$1" file
    elif ! [ -O "$2" ]; then
        answer root "$1" owner
    else
        [ "$1" = task ] || chmod 700 "$2" 2>&1 || { answer failed; return 1; }
        _mode=$(stat -c %f "$2") && [ $((0x$_mode & 022)) = 0 ] && return 0
        answer root "$1" writable
    fi
    return 1
}

# do_create ROOT TASK SOCKETS SOCKET
do_create() {
    claim task "$1" && claim socket "$3" || return
    cd -P "$1" 2>&1 || { answer failed; return; }
    made=1
    step "$2" || return
    chmod 700 . 2>&1 && wipe workdir && mkdir workdir 2>&1 || { answer failed; return; }
    cd -P "$3" 2>&1 && wipe "$4" && mkdir "./$4" 2>&1 || { answer failed; return; }
    answer ok
}

# do_cleanup ROOT TASK SOCKETS SOCKET
do_cleanup() {
    if cd -P "$3" 2>/dev/null; then
        wipe "$4" || return
    fi
    if cd -P "$1" 2>/dev/null; then
        wipe "$2" || return
    fi
    answer ok
}

# do_pour MODE TEMPORARY NAME ABOVE: a new file from a stream: lines with a length, each followed by so many bytes, and
# in the end a line `end LENGTH`. Without that line, and where the name is taken, nothing stays.
do_pour() {
    _mode=$1 _temp=$2 _name=$3
    # Where it stops early, the rest of the stream is no question.
    last=1
    cd -P "$4" 2>/dev/null || { answer missing; return; }
    if [ -e "./$_name" ] || [ -L "./$_name" ]; then
        answer taken
        return
    fi
    trap 'rm -f "./$_temp"' EXIT
    trap 'exit 1' HUP INT TERM PIPE
    set -C
    {
        set +C
        answer failed
        while IFS= read -r _line; do
            case $_line in
            end\ *)
                _len=$(stat -L -c %s /proc/self/fd/3 2>&1)
                if [ "$_len" != "${_line#end }" ]; then
                    printf 'it has %s bytes instead of %s' "$_len" "${_line#end }"
                elif chmod "$_mode" /proc/self/fd/3 2>&1 && { sync "./$_temp" 2>/dev/null || sync; }; then
                    if ln "./$_temp" "./$_name" 2>&1; then
                        answer ok "$_len"
                    elif [ -e "./$_name" ] || [ -L "./$_name" ]; then
                        answer taken
                    fi
                fi
                break
                ;;
            *) dd bs="$_line" count=1 iflag=fullblock status=none 2>&1 >&3 || break ;;
            esac
        done
    } 3>"./$_temp"
    set +C
    rm -f "./$_temp"
    trap - EXIT
}
