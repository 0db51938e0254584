
# The first line is a key that nobody else has: what is asked begins and ends with it. So bytes of a file that somehow come to
# be taken for a question are not done.
IFS= read -r key || exit
question= begun= last=
while IFS= read -r line; do
    case $line in
    "!$key") begun=1 question= ;;
    "=$key "*)
        nonce=${line#"=$key "}
        made= said=failed
        # What the shell itself complains about is said, too.
        if [ -n "$begun" ]; then eval "$question" 2>&1; else printf 'questions are out of step'; fi
        cd /
        printf '\n%s %s\n' "$nonce" "$said"
        [ -z "$last" ] || exit 0
        question= begun=
        ;;
    *) question=$question${line#+}$nl ;;
    esac
done
