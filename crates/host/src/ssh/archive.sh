
# Packing and extracting. Besides what the hand needs: cat head tail, and the tar of GNU.

# needs_tar
needs_tar() {
    case $(tar --version 2>/dev/null) in
    *'GNU tar'*) ;;
    *)
        answer tar
        return 1
        ;;
    esac
}

# chunk: copies up to 1 MiB to the real output, and fails where that was the last of it.
chunk() {
    case $(dd bs=1048576 count=1 iflag=fullblock 2>&1 >&5) in
    1+0*) ;;
    *) return 1 ;;
    esac
}

# do_pack LIST ABOVE TASK workdir: says the paths of all files, directories and links, takes those that are wanted, and
# packs them. Ends the shell, by the status of tar or one of these: 71 missing, 72 a link, 73 failed, 74 no tar of GNU.
#
# Nothing comes unless a line `t` has asked for it, and then 1 MiB at most: who reads slowly stops tar, and neither the
# connection nor its memory. The list goes where no disk can be full, if there is such a place, and has no name there.
do_pack() {
    _list=$1
    shift
    needs_tar || exit 74
    _task=$1/$2
    enter "$@" >&6 || case $said in missing) exit 71 ;; link) exit 72 ;; *) exit 73 ;; esac
    set -C
    for _place in /dev/shm "$_task"; do
        [ -d "$_place" ] && [ -w "$_place" ] || continue
        {
            set +C
            {
                rm -f "$_place/$_list"
                pack 3<&0
                exit
            } 7<"$_place/$_list"
        } 4>"$_place/$_list"
    done 2>&6
    exit 73
}

pack() {
    {
        find -P . -mindepth 1 \( -type f -o -type d -o -type l \) -print0 -o -exec printf 'special:%s\0' {} \; </dev/null
        printf '\0%s\0' $?
    } | {
        _over=
        while IFS= read -r _line <&3; do
            case $_line in
            t) [ -n "$_over" ] || chunk || _over=1 ;;
            e) exit 0 ;;
            *) dd bs="$_line" count=1 iflag=fullblock status=none <&3 >&4 || exit 73 ;;
            esac
        done
        exit 73
    } || exit 73
    _status=$(
        {
            {
                tar -c -f - --format=gnu --numeric-owner --no-recursion --null -T - <&7 2>&6 8>&-
                echo $? >&8
            } | while IFS= read -r _line <&3; do
                chunk || break
            done
        } 8>&1
    )
    exit "$_status"
}

# do_restore MARK ABOVE TASK: takes the place of the workdir by what a tar has: lines with a length, each followed by so
# many bytes, then `e` and `commit`. Without these two the workdir is as it was.
do_restore() {
    _new=.workdir.new-$1 _old=.workdir.old-$1
    shift
    # Where it stops early, the rest of the stream is no question.
    last=1
    needs_tar && enter "$@" || return
    # What a crash has left. A workdir has one owner, so nobody else restores it now.
    for _left in .workdir.old-* .workdir.new-*; do
        [ -e "./$_left" ] || continue
        case $_left in
        .workdir.old-*)
            # The crash came between the two renames.
            if ! [ -e ./workdir ] && ! [ -L ./workdir ]; then
                mv -T "./$_left" ./workdir 2>&1 || { answer failed; return; }
                continue
            fi
            ;;
        esac
        wipe "$_left" || return
    done
    mkdir "./$_new" 2>&1 || { answer failed; return; }
    trap 'wipe "$_new" >/dev/null' EXIT
    trap 'exit 1' HUP INT TERM PIPE
    if unpack 3<&0; then
        exchange
    fi
    _answer=$said
    wipe "$_new" >/dev/null
    trap - EXIT
    said=$_answer
}

unpack() {
    _words=$(
        while IFS= read -r _line <&3; do
            case $_line in
            e) break ;;
            *) dd bs="$_line" count=1 iflag=fullblock status=none <&3 || break ;;
            esac
        done | {
            tar -x -f - -p --no-same-owner --delay-directory-restore -C "./$_new" 2>&1
            printf '\n%s' $?
        } | tail -c 2000
    )
    if [ "${_words##*"$nl"}" != 0 ]; then
        printf '%s' "${_words%"$nl"*}"
        answer failed
        return 1
    fi
    IFS= read -r _line <&3
    [ "$_line" = commit ] && return
    printf 'it was cut'
    answer failed
    return 1
}

exchange() {
    if [ -e ./workdir ] || [ -L ./workdir ]; then
        mv -T ./workdir "./$_old" 2>&1 || { answer failed; return; }
    fi
    if mv -T "./$_new" ./workdir 2>&1; then
        answer ok
        _kept=$said
        # What is left of it is removed by the next one.
        wipe "$_old" >/dev/null
        said=$_kept
    else
        [ -e "./$_old" ] && mv -T "./$_old" ./workdir 2>&1
        answer failed
    fi
}
