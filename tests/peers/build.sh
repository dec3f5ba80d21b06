#!/usr/bin/env bash
# A model server to test against: llama-server, and a model of half a megabyte that it can run.
#
#     build.sh            builds what is lacking (minutes, once), and prints the folder it is in
#     build.sh --cached   prints the folder if nothing is lacking, else ends with status 1; builds nothing
#
# The C++ source is the one that the sdist of llama-cpp-python carries (MIT). Needs cmake, g++, and pip's network.
set -euo pipefail
cd "$(dirname "$0")"
version=0.3.36
sum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
home=${MLLM_CI_CACHE:-$HOME/.cache/mllm-pipe-ci}/llama-$version

# The model is as old as the script that wrote it, of which a copy lies beside it.
complete() { [ -x "$home/llama-server" ] && [ -s "$home/tiny.gguf" ] && cmp -s tiny_gguf.py "$home/tiny_gguf.py"; }

if [ "${1-}" = --cached ]; then
	complete || exit 1
	echo "$home"
	exit
fi

mkdir -p "$home"
exec 9>"$home/lock"
flock 9 # two who find it lacking do not build it twice
if ! complete; then
	for tool in cmake g++; do
		command -v "$tool" >/dev/null || { echo "build.sh: $tool: not found; install cmake and g++" >&2; exit 69; }
	done
	scratch=$(mktemp -d)
	trap 'rm -rf "$scratch"' EXIT
	python3 -m venv "$scratch/venv"
	pip() { "$scratch/venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check >&2; }

	if [ ! -x "$home/llama-server" ]; then
		pip download --no-deps --no-binary :all: --dest "$scratch" "llama-cpp-python==$version"
		sdist=$scratch/llama_cpp_python-$version.tar.gz
		echo "$sum  $sdist" | sha256sum --check --quiet >&2
		mkdir "$scratch/source"
		tar xzf "$sdist" -C "$scratch/source" --strip-components=1
		nice cmake -S "$scratch/source/vendor/llama.cpp" -B "$scratch/build" --log-level=WARNING \
			-DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF \
			-DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_APP=OFF \
			-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >&2
		nice cmake --build "$scratch/build" --target llama-server -j2 >&2
		strip -o "$home/llama-server.new" "$scratch/build/bin/llama-server"
		mv "$home/llama-server.new" "$home/llama-server"
	fi

	pip install gguf==0.19.0 numpy==2.4.6
	"$scratch/venv/bin/python" tiny_gguf.py "$home/tiny.gguf"
	cp tiny_gguf.py "$home/tiny_gguf.py"
fi
echo "$home"
