# forget GLOB…: unsets what matches. Lines of `env` that only look like names come from values with newlines; to
# unset a name that is not there, or is meant anyway, harms nobody.
forget() {
    _og_ifs=$IFS
    IFS='
'
    set -f
    for _og_line in $(env); do
        _og_name=${_og_line%%=*}
        case $_og_name in "$_og_line" | '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac
        for _og_glob in "$@"; do
            # Some shells have variables that cannot be unset, and die of trying.
            case $_og_name in $_og_glob) (unset "$_og_name") 2>/dev/null && unset "$_og_name" ;; esac
        done
    done
    set +f
    IFS=$_og_ifs
}

