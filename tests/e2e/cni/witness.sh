#!/bin/sh
# A small network plugin (CNI 1.1) that keeps its books in a directory: who has an address, what it
# was called for, and what it was told. A test makes it misbehave by a file act.VERB there, which is
# read as a part of this script.
dir=@DIR@
input=$(cat)
printf '%s %s %s\n' "$CNI_COMMAND" "$CNI_CONTAINERID" "${CNI_NETNS:-none}" >>"$dir/calls"
printf '%s\n' "$input" >"$dir/told.$CNI_COMMAND"
env | sort >"$dir/environment.$CNI_COMMAND"

# An error object ends the plugin: code, message, details.
fail() {
    printf '{"cniVersion":"1.1.0","code":%s,"msg":"%s","details":"%s"}\n' "$1" "$2" "$3"
    exit 1
}

inside() { nsenter --net="$CNI_NETNS" "$@"; }

# The pod's address is its place in the book.
take() {
    for number in $(seq 2 250); do
        mkdir "$dir/numbers/$number" 2>/dev/null || continue
        echo "$number" >"$dir/held/$CNI_CONTAINERID"
        return
    done
    fail 100 "no address is free" ""
}

give_back() {
    [ -e "$dir/held/$1" ] || return 0
    rmdir "$dir/numbers/$(cat "$dir/held/$1")" 2>/dev/null
    rm "$dir/held/$1"
}

if [ -e "$dir/act.$CNI_COMMAND" ]; then . "$dir/act.$CNI_COMMAND"; fi

case $CNI_COMMAND in
VERSION)
    echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}'
    ;;
ADD)
    [ -e "$dir/held/$CNI_CONTAINERID" ] && fail 101 "it was added before" "$CNI_CONTAINERID"
    take
    inside ip link add eth0 type bridge || fail 102 "no link" ""
    inside ip address add "10.77.0.$number/24" dev eth0
    inside ip link set eth0 up
    version=$(printf '%s' "$input" | jq -r .cniVersion)
    printf '{"cniVersion":"%s","interfaces":[{"name":"eth0","sandbox":"%s"}],' "$version" "$CNI_NETNS"
    printf '"ips":[{"address":"10.77.0.%s/24","interface":0}]}\n' "$number"
    ;;
DEL)
    [ -n "$CNI_NETNS" ] && inside ip link delete eth0 2>/dev/null
    give_back "$CNI_CONTAINERID"
    ;;
CHECK)
    inside ip link show eth0 >/dev/null 2>&1 || fail 103 "the link is gone" "eth0"
    ;;
STATUS)
    [ -e "$dir/not-ready" ] && fail 50 "the agent is away" "$(cat "$dir/not-ready")"
    ;;
GC)
    for held in "$dir"/held/*; do
        id=$(basename "$held")
        printf '%s' "$input" | jq -e --arg id "$id" \
            '."cni.dev/valid-attachments" | any(.containerID == $id)' >/dev/null || give_back "$id"
    done
    ;;
*)
    fail 4 "unknown CNI_COMMAND" "$CNI_COMMAND"
    ;;
esac
exit 0
