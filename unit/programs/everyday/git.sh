# needs: git
# ports: 9418
serve() {
    cd "$D"
    git init -q --bare -b main all.git
    exec git daemon --reuseaddr --export-all --enable=receive-pack --base-path="$D" "$D" 2>"$D/git.log"
}
ask() {
    git config --global --add safe.directory '*'
    git config --global user.name somebody
    git config --global user.email somebody@example.net
    git config --global init.defaultBranch main
    export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z'
    git init -q one
    cp "$D/payload" one/payload
    git -C one add payload
    git -C one commit -q -m "the payload"
    git -C one push -q "git://$V4/all.git" main
    for ip in $ips; do
        git clone -q "git://$ip/all.git" two
        same two/payload
        echo more >>two/more
        git -C two add more
        git -C two commit -q -m "more"
        git -C two push -q origin main
        git ls-remote "git://$ip/all.git"
        rm -rf two
    done
}
