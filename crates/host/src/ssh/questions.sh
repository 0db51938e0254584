
# The first line is a key that nobody else has: what is asked ends with it. So bytes of a file that somehow come to be taken
# for a question are not done.
IFS= read -r key || exit
question= last=
while IFS= read -r line; do
    case $line in
    "=$key "*)
        nonce=${line#"=$key "}
        made= said=failed
        # What the shell itself complains about is said, too.
        eval "$question" 2>&1
        cd /
        printf '\n%s %s\n' "$nonce" "$said"
        [ -z "$last" ] || exit 0
        question=
        ;;
    *) question=$question${line#+}$nl ;;
    esac
done
