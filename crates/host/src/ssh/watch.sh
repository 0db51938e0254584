# The far end of all watches of one connection. Lines on standard input:
#   p PATHS  these are the paths now, as quoted words
#   t        look: what changed since the last look is said, `-` what it was and `+` what it is, then a line `.`
# We only look when we are told to, so this ends, or stands still, with those who ask.

LC_ALL=C
export LC_ALL
set -f
IFS='
'
nl=$IFS
format='%f:%d:%i:%.9W:%s:%.9Y:%.9Z|%n'
case $(stat -c "$format" / 2>/dev/null) in
*[0-9].[0-9]*) ;;
# That of busybox: whole seconds, so a change within the second shows by inode or length only.
*) format='%f:%d:%i:0:%s:%Y:%Z|%n' ;;
esac
paths= old=
while IFS= read -r line; do
    case $line in
    p\ *) paths=${line#p } ;;
    t)
        new=
        [ -z "$paths" ] || eval "new=\$(stat -c \"\$format\" -- $paths 2>/dev/null)"
        if [ "$new" != "$old" ]; then
            for fact in $old; do
                case "$nl$new$nl" in
                *"$nl$fact$nl"*) ;;
                *) printf -- '-%s\n' "$fact" ;;
                esac
            done
            for fact in $new; do
                case "$nl$old$nl" in
                *"$nl$fact$nl"*) ;;
                *) printf '+%s\n' "$fact" ;;
                esac
            done
            old=$new
        fi
        echo .
        ;;
    esac
done
