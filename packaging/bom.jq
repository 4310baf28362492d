# A bill of materials (CycloneDX 1.5) of the packages $roots of a workspace and of all that they are built from, without what only tests need: from
# `cargo metadata`, with the checksums of Cargo.lock in $sums ("NAME VERSION": SHA-256).
(.packages | map({key: .id, value: .}) | from_entries) as $packages
| (.resolve.nodes | map({key: .id, value: [.deps[] | select(any(.dep_kinds[]; .kind != "dev")) | .pkg]}) | from_entries) as $needs
| [.packages[] | select(.source == null and (.name as $name | $roots | index($name))) | .id] as $first
| ({known: $first, next: $first}
   | until(.next == []; .known as $known | ([.next[] | $needs[.][]] | unique - $known) as $more | {known: ($known + $more), next: $more})
   | .known | unique) as $all
| ($packages | with_entries(.value = "pkg:cargo/\(.value.name)@\(.value.version)")) as $reference
| {
    bomFormat: "CycloneDX",
    specVersion: "1.5",
    version: 1,
    metadata: {
      timestamp: $time,
      component: {type: "application", name: "synproxy", version: $version, "bom-ref": "synproxy", licenses: [{expression: "MIT OR Apache-2.0"}]}
    },
    components: [
      $all[] | $packages[.] | "\(.name) \(.version)" as $key
      | {type: "library", "bom-ref": $reference[.id], name, version, purl: $reference[.id]}
        # Some write a slash, which SPDX has no more.
        + (if .license then {licenses: [{expression: (.license | gsub("/"; " OR "))}]} else {} end)
        + (if $sums[$key] then {hashes: [{alg: "SHA-256", content: $sums[$key]}]} else {} end)
        + (if .repository then {externalReferences: [{type: "vcs", url: .repository}]} else {} end)
    ],
    dependencies: ([{ref: "synproxy", dependsOn: [$first[] | $reference[.]]}]
      + [$all[] | {ref: $reference[.], dependsOn: [$needs[.][] | select(. as $id | $all | index($id)) | $reference[.]]}])
  }
