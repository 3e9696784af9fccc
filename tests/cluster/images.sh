#!/usr/bin/env bash
# images.sh HELLO_BINARY OUT.tar - the images of the tests, made from scratch and saved as one archive.
#
#   localhost/podman-swarm-hello:1 and :2   the example's web server
#   localhost/busybox:test                  a shell, wget, nslookup, tar and a web server
#
# Uses a Podman store of its own, so that the machine's stays as it is.
set -euo pipefail
hello=$1 out=$2
work=$(mktemp -d)
engine=(podman --root "$work/store" --runroot "$work/run" --storage-driver vfs)
cleanup() { rm -rf "$work"; }
trap cleanup EXIT

mkdir "$work/hello" "$work/busybox"
cp "$hello" "$work/hello/hello"
printf 'FROM scratch\nCOPY hello /hello\nENTRYPOINT ["/hello"]\n' > "$work/hello/Containerfile"
"${engine[@]}" build -q --isolation chroot -t localhost/podman-swarm-hello:1 -t localhost/podman-swarm-hello:2 "$work/hello" >/dev/null

cp "$(command -v busybox)" "$work/busybox/busybox"
mkdir "$work/busybox/bin"
for applet in sh ls cat sleep wget nslookup echo env ip nc true false kill touch printf grep hostname date head httpd md5sum mkdir stty tar; do
    ln -s /busybox "$work/busybox/bin/$applet"
done
printf 'FROM scratch\nCOPY busybox /busybox\nCOPY bin /bin\nENV PATH=/bin\nCMD ["/bin/sh"]\n' > "$work/busybox/Containerfile"
"${engine[@]}" build -q --isolation chroot -t localhost/busybox:test "$work/busybox" >/dev/null

rm -f "$out.new"
"${engine[@]}" save -q -m -o "$out.new" localhost/podman-swarm-hello:1 localhost/podman-swarm-hello:2 localhost/busybox:test
mv "$out.new" "$out"
