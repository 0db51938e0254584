# The guard of one agent: starts it in a session of its own, keeps who it is and how it ended in files, and is its
# dead-man's switch. Run as `sh guard.sh VERB DIR …`, DIR being the `guard` directory of a task directory.
#
# Plain POSIX sh on Linux; besides it: cat env grep (-z) mv rm setsid sleep tail wc, of GNU or busybox, and tmux for an
# agent on a terminal. A tick costs one `sleep` and nothing else: /proc is read by the shell itself.
#
# Three processes, so that no two duties share a death:
#   keeper   the agent's parent; waits for it and writes DIR/exit; knows nothing of heartbeats
#   watcher  the dead-man's switch; any number of times replaced while the agent lives
#   agent    writes DIR/agent, then becomes the program by exec, so pid and start time stay the same
# Keeper and agent are never started with `&`: a shell starts such children with SIGINT ignored, for ever.
#
# An agent on a terminal (DIR/pane is there) has tmux for a parent, so keeper and agent are one shell, the pane's: it leads
# the group and the session of the terminal, outlives every signal but SIGKILL, runs the program as its child, and writes
# both DIR/agent and DIR/exit. The server of tmux carries the mark, and is a part of the run.
#
# Files in DIR, all written by rename:
#   run        mark, term and kill age (1/100 s); by us before the start
#   launch     directory, environment and words of the agent; 0600; removed as soon as it was read
#   pane       words of an agent on a terminal, and of the tmux that has it
#   tmux.conf  the settings of that tmux
#   heartbeat  any word; a new one is a heartbeat
#   seen       the last heartbeat the watcher saw
#   agent      pid and start time        watcher    pid and start time
#   stale      there, if the watcher sent a signal
#   exit       status (128 + signal, or `unknown`), 1 if the watcher caused it, and a time at which the agent still lived
#   stderr     output of the agent, appended; cut to its end when it grows
#   looked     as old as the last look at its length

# In front of this file stands shell_env/forget.sh.

_og_verb=${1-}
_og_dir=${2-}
_og_self=$_og_dir/guard.sh
# A guard never carries a mark, not even that of an agent whose grandchild started all this.
unset OPTIO_CODEX_RUN
# Files of ours are for our eyes only; the agent has the umask that its user gave it, which the first of us still sees.
_og_mask=${OPTIO_CODEX_UMASK:-$(umask)}
OPTIO_CODEX_UMASK=$_og_mask
export OPTIO_CODEX_UMASK
umask 077

# look PID: reads state, group, session and start time of a process. The name in parentheses may hold anything, newlines and
# parentheses too, so everything is joined and only what follows the last one is taken.
look() {
    _og_stat=
    { while IFS= read -r _og_part || [ -n "$_og_part" ]; do
        _og_stat="$_og_stat $_og_part"
    done <"/proc/$1/stat"; } 2>/dev/null
    fields ${_og_stat##*)}
}

# fields STATE PARENT GROUP SESSION …: takes apart what follows the name in /proc/PID/stat.
fields() {
    [ $# -ge 20 ] || return 1
    _og_state=$1 _og_group=$3 _og_session=$4
    shift 19
    _og_start=$1
}

# same PID START: true while that very process is there, dead or alive.
same() {
    look "$1" && [ "$_og_start" = "$2" ]
}

# lives PID START: true while that very process is there and not a zombie.
lives() {
    same "$1" "$2" || return 1
    case $_og_state in Z | X | x) return 1 ;; esac
}

# first FILE: puts the words of a file into _og_1, _og_2 and _og_3.
first() {
    _og_1= _og_2= _og_3=
    [ -r "$1" ] || return 1
    { read -r _og_1 _og_2 _og_3 <"$1"; } 2>/dev/null
    [ -n "$_og_1" ]
}

# put FILE WORDS…: replaces a file in one step.
put() {
    _og_file=$1
    shift
    { printf '%s\n' "$*" >"$_og_file.$$" && mv -f "$_og_file.$$" "$_og_file"; } 2>/dev/null
}

# Hundredths of a second since boot, without a process. "1" before the fraction keeps 08 from being octal.
now() {
    read -r _og_up _og_idle </proc/uptime
    _og_now=$((${_og_up%.*} * 100 + 1${_og_up#*.} - 100))
}

# nap HUNDREDTHS
nap() {
    sleep "$(($1 / 100)).$(($1 / 10 % 10))$(($1 % 10))"
}

# Reads DIR/run and DIR/agent.
load() {
    _og_mark= _og_term= _og_kill= _og_pid=0 _og_born=0
    { read -r _og_mark _og_term _og_kill <"$_og_dir/run"; } 2>/dev/null
    [ -n "$_og_mark" ] || return 1
    if first "$_og_dir/agent"; then
        _og_pid=$_og_1 _og_born=$_og_2
    fi
}

# carries PID: true if the process was started with our mark.
carries() {
    LC_ALL=C grep -qszxF -- "OPTIO_CODEX_RUN=$_og_mark" "/proc/$1/environ"
}

# scan: lists what is left of the agent's run as PID:START words in _og_left: its group, its session, and whatever
# carries its mark. Nothing older than the agent descends from it. As long as the agent's pid is the agent's or
# nobody's, its group and session have not been given to others.
scan() {
    _og_left=
    _og_ours=$_og_pid
    if [ "$_og_pid" = 0 ] || { look "$_og_pid" && [ "$_og_start" != "$_og_born" ]; }; then
        _og_ours=none
    fi
    # All at once: one process each, however many there are on the host.
    _og_marked="
$(LC_ALL=C grep -lszxF -- "OPTIO_CODEX_RUN=$_og_mark" /proc/[0-9]*/environ)
"
    _og_ifs=$IFS
    IFS='
'
    set -f
    set -- $(set +f && cat /proc/[0-9]*/stat 2>/dev/null)
    set +f
    IFS=$_og_ifs
    _og_stat=
    for _og_part in "$@"; do
        _og_stat="$_og_stat$_og_part "
        # Half a line: there is a newline in the name.
        case $_og_part in *')'*) ;; *) continue ;; esac
        _og_p=${_og_stat%% *}
        fields ${_og_stat##*)} || _og_state=X
        _og_stat=
        case $_og_state in Z | X | x) continue ;; esac
        if [ "$_og_start" -lt "$_og_born" ] || [ "$_og_p" = $$ ]; then
            continue
        fi
        case $_og_marked in *"
/proc/$_og_p/environ
"*) ;; *)
            [ "$_og_group" = "$_og_ours" ] || [ "$_og_session" = "$_og_ours" ] || continue
            ;;
        esac
        _og_left="$_og_left $_og_p:$_og_start"
    done
}

# Who leads the run, as proof for the others: sets _og_leader while the agent lives, and _og_died to a time at which it
# still did.
leader() {
    _og_leader= _og_died=0
    if lives "$_og_pid" "$_og_born"; then
        _og_leader=1
    elif first "$_og_dir/exit"; then
        _og_died=${_og_3:-0}
    fi
}

# proven PID START: true if that very process is of this run. With the agent alive its group and session are; later a
# member of the session that was born before the agent's death is, since nobody enters a session but by birth.
proven() {
    lives "$1" "$2" || return 1
    if [ -n "$_og_leader" ]; then
        [ "$_og_group" = "$_og_pid" ] && return 0
        [ "$_og_session" = "$_og_pid" ] && return 0
    elif [ "$_og_session" = "$_og_pid" ] && [ "$_og_start" -le "$_og_died" ]; then
        return 0
    fi
    carries "$1"
}

# end: SIGKILL to everything that is left and proven; counts in _og_count.
end() {
    _og_count=0
    scan
    leader
    for _og_one in $_og_left; do
        if proven "${_og_one%:*}" "${_og_one#*:}" && kill -s KILL "${_og_one%:*}" 2>/dev/null; then
            _og_count=$((_og_count + 1))
        fi
    done
}

# send SIGNAL: to the agent's group, or to its proven members one by one once the agent itself is gone.
send() {
    leader
    if [ -n "$_og_leader" ]; then
        kill -s "$1" -- "-$_og_pid" 2>/dev/null || kill -s "$1" "$_og_pid" 2>/dev/null
        return
    fi
    scan
    _og_any=1
    for _og_one in $_og_left; do
        proven "${_og_one%:*}" "${_og_one#*:}" && [ "$_og_group" = "$_og_pid" ] || continue
        kill -s "$1" "${_og_one%:*}" 2>/dev/null && _og_any=0
    done
    return $_og_any
}

# ---- start -------------------------------------------------------------------------------------------------------

# The second setsid is a group leader already and therefore forks: whatever the caller is, the new process has another
# parent, another session, and this returns at once.
detached() {
    setsid setsid sh "$_og_self" "$@" 2>/dev/null
}

start() {
    load
    if [ "$_og_pid" != 0 ] && lives "$_og_pid" "$_og_born"; then
        echo "running $_og_pid"
        return
    fi
    rm -f "$_og_dir/agent" "$_og_dir/exit" "$_og_dir/stale" "$_og_dir/watcher" "$_og_dir/seen" "$_og_dir/failed"
    _og_how=keep
    [ -e "$_og_dir/pane" ] && _og_how=stage
    detached $_og_how "$_og_dir" </dev/null | {
        read -r _og_answer || _og_answer="failed the $_og_how ended"
        printf '%s\n' "$_og_answer"
    }
}

watching() {
    detached watch "$_og_dir" "$1" </dev/null 3>&- | { read -r _og_answer; }
}

keep() {
    # Some shells end with a child that SIGINT ended. A trap, unlike ignoring, is not handed down.
    trap : INT
    exec 3>&1 >/dev/null
    watching $$
    setsid sh "$_og_self" agent "$_og_dir" >>"$_og_dir/stderr" 2>&1 3>&3
    _og_status=$?
    now
    if ! first "$_og_dir/agent"; then
        echo "failed the agent's shell ended with status $_og_status" >&3
        return
    fi
    _og_stale=0
    [ -e "$_og_dir/stale" ] && _og_stale=1
    put "$_og_dir/exit" "$_og_status" "$_og_stale" "$_og_now"
}

fail() {
    printf 'failed %s\n' "$*" >&3
    exit 127
}

agent() {
    _og_tools=$PATH
    _og_launch=$(cat "$_og_dir/launch" 2>/dev/null && echo .) || fail "the launch file is missing"
    rm -f "$_og_dir/launch"
    eval "${_og_launch%.}"
}

# theirs: what comes now is the agent's, not ours.
theirs() {
    unset OPTIO_CODEX_UMASK
    umask "$_og_mask"
}

# The launch file ends with `become WORDS…`.
become() {
    case $1 in
    */*) [ -x "$1" ] && [ ! -d "$1" ] || fail "$1 is no program" ;;
    *) command -v -- "$1" >/dev/null 2>&1 || fail "$1 is not in PATH" ;;
    esac
    look $$
    PATH=$_og_tools put "$_og_dir/agent" $$ "$_og_start" || fail "the agent's identity cannot be written"
    echo "started $$ $_og_start" >&3
    exec 3>&-
    theirs
    exec "$@"
}

# ---- on a terminal -------------------------------------------------------------------------------------------------

# How long a pane's shell may take to begin, in hundredths of a second.
_og_curtain=1000

# stage: makes the terminal. The launch file ends with `open_terminal TMUX SOCKET WORDS…`.
stage() {
    trap : INT
    exec 3>&1 >/dev/null
    agent
}

open_terminal() {
    _og_tmux=$1 _og_socket=$2
    shift 2
    command -v -- "$_og_tmux" >/dev/null 2>&1 || fail "$_og_tmux is not there; a terminal needs tmux"
    # Nobody of this task directory lives here any more, or this would not be reached (S-263).
    "$_og_tmux" -S "$_og_socket" kill-server >/dev/null 2>&1 3>&-
    rm -f "$_og_socket"
    unset TMUX TMUX_PANE
    PATH=$_og_tools watching $$
    theirs
    _og_said=$("$_og_tmux" -u -S "$_og_socket" "$@" 2>&1 </dev/null 3>&-) || fail "tmux: $_og_said"
    PATH=$_og_tools
    now
    _og_until=$((_og_now + _og_curtain))
    while ! first "$_og_dir/agent"; do
        if [ -s "$_og_dir/failed" ]; then
            read -r _og_said <"$_og_dir/failed"
            fail "$_og_said"
        fi
        now
        [ "$_og_now" -lt $_og_until ] || fail "the terminal's shell did not begin"
        nap 2
    done
    echo "started $_og_1 $_og_2" >&3
}

# pane: the terminal's shell. DIR/pane ends with `play TMUX SOCKET WORDS…`.
pane() {
    # A trap, unlike ignoring, is not handed down: the program hears every signal, this shell outlives it.
    trap : INT TERM HUP QUIT
    _og_words=$(cat "$_og_dir/pane" && echo .) || return
    eval "${_og_words%.}"
}

play() {
    _og_tmux=$1 _og_socket=$2
    shift 2
    case $1 in
    */*) [ -x "$1" ] && [ ! -d "$1" ] || refuse "$1 is no program" ;;
    *) command -v -- "$1" >/dev/null 2>&1 || refuse "$1 is not in PATH" ;;
    esac
    look $$
    put "$_og_dir/agent" $$ "$_og_start" || refuse "the agent's identity cannot be written"
    theirs
    "$@"
    _og_status=$?
    umask 077
    now
    _og_stale=0
    [ -e "$_og_dir/stale" ] && _og_stale=1
    # What it said last, while there is a screen to read it from.
    "$_og_tmux" -S "$_og_socket" capture-pane -p -J -S -$_og_lines >"$_og_dir/stderr" 2>/dev/null
    put "$_og_dir/exit" "$_og_status" "$_og_stale" "$_og_now"
}

# How many lines above the screen are kept of an agent that has ended.
_og_lines=100

refuse() {
    put "$_og_dir/failed" "$*"
    exit 127
}

# ---- watch -------------------------------------------------------------------------------------------------------

# How much of stderr is kept, and at which size it is cut.
_og_tail=65536
_og_flood=262144

cut_stderr() {
    # Asks wc only after something was written. Some shells compare whole seconds: equal is not older.
    [ "$_og_dir/looked" -nt "$_og_dir/stderr" ] && return
    : >"$_og_dir/looked"
    [ "$(wc -c <"$_og_dir/stderr")" -gt $_og_flood ] || return
    # In place: the agent has it open, and appends.
    tail -c $_og_tail "$_og_dir/stderr" >"$_og_dir/stderr.tail" && cat "$_og_dir/stderr.tail" >"$_og_dir/stderr"
    rm -f "$_og_dir/stderr.tail"
}

# watch KEEPER: 0 when the agent has no keeper any more. An age counts from the look before the one that saw the
# change, so it is never too small and no signal comes too late.
watch() {
    _og_keeper=$1 _og_kept=
    load || return
    look "$_og_keeper" && _og_kept=$_og_start
    look $$
    _og_me="$$ $_og_start"
    put "$_og_dir/watcher" "$_og_me"
    first "$_og_dir/heartbeat"
    _og_beat=$_og_1
    now
    _og_since=$_og_now _og_looked=$_og_now _og_sent= _og_alive=0
    echo watching
    exec >/dev/null 2>&1
    # Well before the limit, at most 5 s; a margin for the time a signal takes to be sent.
    _og_tick=$((_og_term / 8))
    [ $_og_tick -le 500 ] || _og_tick=500
    [ $_og_tick -ge 5 ] || _og_tick=5
    _og_margin=$((_og_tick / 5))

    while :; do
        if first "$_og_dir/watcher" && [ "$_og_1 $_og_2" != "$_og_me" ]; then
            return
        fi
        now
        first "$_og_dir/heartbeat"
        if [ -n "$_og_1" ] && [ "$_og_1" != "$_og_beat" ]; then
            _og_beat=$_og_1 _og_since=$_og_looked _og_sent=
        fi
        # Written at every look: whoever reads it back knows that somebody looks.
        [ -d "$_og_dir" ] && echo "$_og_beat" >"$_og_dir/seen"
        _og_looked=$_og_now
        _og_age=$((_og_now - _og_since + _og_margin))

        if [ $_og_pid = 0 ]; then
            load
            if [ "$_og_pid" = 0 ]; then
                lives "$_og_keeper" "$_og_kept" || return
                nap 10
                continue
            fi
        fi
        if lives "$_og_pid" "$_og_born"; then
            _og_alive=$_og_now
            if [ $_og_age -ge "$_og_kill" ]; then
                : >"$_og_dir/stale"
                send KILL
                end
            elif [ $_og_age -ge "$_og_term" ] && [ -z "$_og_sent" ]; then
                : >"$_og_dir/stale"
                send TERM
                _og_sent=1
            fi
            cut_stderr
        else
            if [ -z "$_og_kept" ] || ! lives "$_og_keeper" "$_og_kept"; then
                _og_stale=0
                [ -e "$_og_dir/stale" ] && _og_stale=1
                first "$_og_dir/agent" && [ "$_og_1 $_og_2" = "$_og_pid $_og_born" ] &&
                    [ ! -e "$_og_dir/exit" ] && put "$_og_dir/exit" unknown $_og_stale $_og_alive
            fi
            # What it left running keeps its switch.
            scan
            [ -n "$_og_left" ] || return
            [ $_og_age -lt "$_og_kill" ] || end
        fi

        _og_nap=$_og_tick
        for _og_at in "$_og_term" "$_og_kill"; do
            _og_rest=$((_og_at - _og_age))
            [ $_og_rest -gt 0 ] && [ $_og_rest -lt $_og_nap ] && _og_nap=$_og_rest
        done
        nap $_og_nap
    done
}

# ---- questions ---------------------------------------------------------------------------------------------------

# state: `absent`, `running PID START` or `exited PID START STATUS STALE`.
state() {
    load
    if [ "$_og_pid" = 0 ]; then
        echo absent
        return
    fi
    if lives "$_og_pid" "$_og_born"; then
        echo "running $_og_pid $_og_born"
        return
    fi
    # The keeper is about to write it, or was killed.
    _og_try=0
    while ! first "$_og_dir/exit" && [ $_og_try -lt 20 ]; do
        _og_try=$((_og_try + 1))
        nap 5
    done
    _og_stale=0
    [ -e "$_og_dir/stale" ] && _og_stale=1
    echo "exited $_og_pid $_og_born ${_og_1:-unknown} ${_og_2:-$_og_stale}"
}

# rewatch: a new watcher where there is an agent and none watches.
rewatch() {
    load && [ "$_og_pid" != 0 ] && lives "$_og_pid" "$_og_born" || return 0
    if first "$_og_dir/watcher" && lives "$_og_1" "$_og_2"; then
        return
    fi
    watching 0
}

# retire: ends the watcher, which has nothing left to watch, together with the nap it is taking. It leads a group of its
# own, since `detached` gave it a session.
retire() {
    first "$_og_dir/watcher" && lives "$_og_1" "$_og_2" && [ "$_og_group" = "$_og_1" ] || return 0
    kill -s KILL -- "-$_og_1" 2>/dev/null
}

# gone HUNDREDTHS: waits until nothing is left; twice, since a process may be born behind the back of one scan.
gone() {
    load || return 0
    now
    _og_until=$((_og_now + $1))
    _og_clean=0
    while :; do
        scan
        if [ -z "$_og_left" ]; then
            _og_clean=$((_og_clean + 1))
            [ $_og_clean -lt 2 ] || break
            continue
        fi
        _og_clean=0
        now
        if [ "$_og_now" -ge $_og_until ]; then
            echo "left$_og_left"
            return
        fi
        nap 10
    done
    retire
    echo gone
}

case $_og_verb in
start | keep | stage | pane | state | rewatch | watch | agent) ;;
signal | gone | kill) ;;
*)
    echo "guard.sh: unknown verb" >&2
    exit 64
    ;;
esac
shift 2
case $_og_verb in
signal)
    load && [ "$_og_pid" != 0 ] || exit 0
    if send "$1"; then echo sent; fi
    ;;
kill)
    _og_count=0
    load && end
    echo $_og_count
    ;;
*) "$_og_verb" "$@" ;;
esac
exit 0
