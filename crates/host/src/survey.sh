# What a host has: `sh -c SCRIPT sh TASK_ROOT`. Says `NAME VALUE` lines, those that it knows.
#
# Besides sh: nothing that it could not do without; what is missing is what it is asked for.
export LC_ALL=C
say() {
    # One line, whatever it is.
    printf '%s %s\n' "$1" "${2%%
*}"
}
has() {
    command -v "$1" >/dev/null 2>&1
}

# Its own words, and not for ever.
ask() {
    if has timeout; then timeout 5 "$@" </dev/null 2>&1; else "$@" </dev/null 2>&1; fi
}

# What the user's profile has in PATH counts (S-244); its last line, because a profile may print what it
# likes. Then what a program gets without one, and where ttyd is put (S-239).
login=$(ask sh -lc 'printf "\n%s\n" "$PATH"')
login=${login##*
}
case $login in /*) PATH=$login:$PATH ;; esac
[ -n "${HOME-}" ] && PATH=$PATH:$HOME/.local/bin
export PATH

say kernel "$(uname -sr 2>/dev/null)"
say arch "$(uname -m 2>/dev/null)"
name=$(. /etc/os-release 2>/dev/null && printf '%s' "${PRETTY_NAME-}")
say os "${name:-$(uname -s 2>/dev/null)}"
user=$(id -un 2>/dev/null)
say user "${user:-${LOGNAME-}}"
say home "${HOME-}"
[ -d "${HOME-}" ] && [ -w "${HOME-}" ] && say home_usable yes
shell=$(has getent && getent passwd "$user" 2>/dev/null)
shell=${shell##*:}
say shell "${shell:-${SHELL-}}"
[ -r /proc/self/stat ] && [ -r /proc/uptime ] && say proc yes

# Without these no agent is guarded, watched or found.
lacking=
for program in cat chmod cp date env find grep head id ln ls mkdir mv readlink rm rmdir sed setsid sleep stat tail \
    timeout uname wc; do
    has "$program" || lacking="$lacking $program"
done
say lacking "${lacking# }"

tool() {
    _path=$(command -v "$1" 2>/dev/null)
    case $_path in /*) ;; *) return ;; esac
    say "$1.path" "$_path"
    say "$1.says" "$(ask "$_path" "$2")"
}
tool tmux -V
tool ttyd --version
tool bwrap --version
tool tar --version

# The task root is made by the first session; until then its file system is that of what is above it.
dir=$1
while [ -n "$dir" ] && ! [ -d "$dir" ]; do dir=${dir%/*}; done
[ -d "${dir:=/}" ] && [ -w "$dir" ] && say root_usable yes
df -Pk -- "$dir" 2>/dev/null | while IFS= read -r line; do
    case $line in *%*) say df "$line" ;; esac
done
exit 0
