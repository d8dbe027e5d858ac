#!/usr/bin/env bash
# Make .venv: ROS 2 Jazzy from PyPI, openvla_msgs, and this package, editable, with all extras. `make setup` calls this.
#
# Nothing is done when .venv/ready holds the fingerprint of what is installed from, so a later start needs neither network
# nor time. The marker is written last and removed first: a set-up that was killed is thrown away and begun again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Another environment of ROS wheels, or an apt ROS, may have started us: its libraries and paths must not get in here.
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH CMAKE_PREFIX_PATH

readonly VENV=.venv MARKER=.venv/ready LOG=.venv/setup.log
# What torch asks for. It is there before openvla_msgs is built, so that nothing changes under that build's hands.
readonly SETUPTOOLS='setuptools>=77.0.3'

fingerprint() {  # fingerprint <file or folder>...: changes when their content, or the place of the checkout, does
    { pwd -P; find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; } | sha256sum | cut -d ' ' -f 1
}

find_python() {  # prints the interpreter; runs it, since a pyenv shim may exist and still fail
    local name
    for name in python3.11 python3.12 python3; do
        if "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo "set-up: no usable Python 3.11 or 3.12 (python3.11, python3.12 and python3 were tried, venv and pip included)." >&2
    echo "set-up: install one (Debian, Ubuntu: apt install python3.11 python3.11-venv) and run make setup again." >&2
    return 1
}

step() {  # step <what it is> <command>...: log its output, show the newest line to a person, say how long it took
    local name=$1 begin=$SECONDS line
    shift
    if "$@" 2>&1 | tee -a "$LOG" | while IFS= read -r line; do
        if [ -t 1 ]; then printf '\r\033[K%s: %3d s  %.60s' "$name" $((SECONDS - begin)) "$line"; fi
    done; then
        if [ -t 1 ]; then printf '\r\033[K'; fi
        echo "$name: $((SECONDS - begin)) s"
    else
        echo
        tail -n 40 "$LOG" >&2
        echo "set-up: '$name' failed after $((SECONDS - begin)) s, see above. All output is in $LOG." >&2
        return 1
    fi
}

# Without bytecode: Python writes that of the modules which are used, when they are first used, in a tenth of the time that all take.
pip_install() { "$VENV/bin/python" -m pip install --no-compile -c constraints.txt "$@"; }

install_ros() {  # with the tools that openvla_msgs is built with
    "$VENV/bin/python" - > "$VENV/build_requirements.txt" <<'PYTHON'
import tomllib
with open("msg/openvla_msgs/pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["build-system"]["requires"]))
PYTHON
    pip_install -r "$VENV/build_requirements.txt" "$SETUPTOOLS"
}

install_package() { pip_install -e '.[all]'; }

build_messages() {  # not isolated: that would fetch and unpack the hundred ROS wheels a second time
    rm -rf "$VENV/messages"
    PATH="$PWD/$VENV/bin:$PATH" "$VENV/bin/python" -m pip wheel --no-build-isolation --no-deps --wheel-dir "$VENV/messages" ./msg/openvla_msgs
}

install_messages() {  # from the wheel that was built beside the package's installation; from a new one if there is none, or it failed
    [ -n "$built" ] || build_messages || return 1
    pip_install --no-deps --force-reinstall "$VENV"/messages/*.whl
}

exec 9< setup.sh  # one set-up at a time; whoever comes second finds the work done
flock --nonblock 9 || { echo "Another set-up of this checkout is running; waiting for it."; flock 9; }

wanted="$(fingerprint setup.py setup.cfg setup.sh constraints.txt msg/openvla_msgs/pyproject.toml openvla_ros/policy/openvla/avx512.cpp) $(fingerprint msg)"
there=$(cat "$MARKER" 2>/dev/null || true)
if [ "$there" = "$wanted" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

begin=$SECONDS
if [ -z "$there" ] || ! "$VENV/bin/python" -c '' 2>/dev/null; then
    there="none none"
    rm -rf "$VENV"
    python=$(find_python)
    echo "Setting up $PWD/$VENV with $("$python" --version). This takes a few minutes, once."
    "$python" -m venv "$VENV"
fi
rm -f "$MARKER"
builder= built= changed=
# A step that failed at once (no network, a message that does not compile) leaves the environment as it was, and it counts as it did; one that
# failed later leaves it to be completed next time. A kill or Ctrl-C does not come to `keep`, and leaves no marker.
end_builder() {
    if [ -n "$builder" ]; then kill -- "-$builder" 2>/dev/null || true; fi
}
trap end_builder EXIT
trap 'exit 130' INT TERM
keep() {
    if [ -n "$changed" ]; then
        echo "partial partial" > "$MARKER"
    elif [ "$there" != "none none" ]; then
        echo "$there" > "$MARKER"
    fi
    exit 1
}

if [ "${there% *}" != "${wanted% *}" ]; then
    step "ROS 2" install_ros || keep
    changed=yes
    if [ "${there#* }" != "${wanted#* }" ]; then
        set -m  # a process group of its own, to end all of it; without the lock, which is ours
        build_messages > "$VENV/messages.log" 2>&1 9<&- &
        builder=$!
        set +m
    fi
    step "torch and the package" install_package || keep
    if [ -n "$builder" ]; then
        if wait "$builder"; then built=yes; fi
        builder=
        cat "$VENV/messages.log" >> "$LOG"
    fi
fi
if [ "${there#* }" != "${wanted#* }" ]; then
    step "openvla_msgs" install_messages || keep
fi
echo "$wanted" > "$MARKER.new"
mv "$MARKER.new" "$MARKER"
echo "Set-up done in $((SECONDS - begin)) s."
