# The Lambda function's image (the last stage, so the default) and a plain web server's:
#
#   docker build -t clip-image-encoder .
#   docker build -t clip-server --target server .                    (--build-arg TORCH=cuda for a GPU)
#
# Both builders take it, BuildKit and the classic one that `sam build` uses: hence no RUN --mount, no
# heredocs, no COPY --chmod.
ARG BASE_IMAGE=public.ecr.aws/lambda/python:3.13
# What the stages with torch are built from: any image that has a Python 3.11 or newer with pip, because
# a model folder does not care which Python wrote it.
ARG EXPORT_IMAGE=${BASE_IMAGE}

# --- what the function imports, compiled -----------------------------------------------------------
FROM ${BASE_IMAGE} AS packages
# AWS's base has no find, no tar, no gzip and no which: what they would do, Python does.
COPY requirements.txt export/slim.py ./
RUN pip install --no-cache-dir --no-compile --require-hashes --only-binary :all: \
        --target /packages -r requirements.txt \
    && python slim.py /packages \
    # unchecked-hash: on a read-only root a stale time stamp would mean compiling at every cold start.
    && python -m compileall -q --invalidation-mode unchecked-hash /packages \
    && chmod -R a+rX /packages
COPY handler/ /code/handler/
RUN python -m compileall -q --invalidation-mode unchecked-hash /code && chmod -R a+rX /code

# --- torch and clip: for the export, and for the server --------------------------------------------
FROM ${EXPORT_IMAGE} AS torch
COPY requirements-export.txt requirements-torch.txt ./
RUN pip install --no-cache-dir -r requirements-export.txt
ARG TORCH=cpu
# pip's own setting of that name: a place to look for wheels besides the package index.
ARG PIP_FIND_LINKS=
RUN case "$TORCH" in \
        cpu)  pip install --no-cache-dir --retries 2 --no-deps -r requirements-torch.txt ;; \
        cuda) pip install --no-cache-dir torch==2.13.0 torchvision==0.28.0 ;; \
        *)    echo "TORCH is cpu or cuda, not '$TORCH'" >&2; exit 2 ;; \
    esac

# --- checkpoint -> model, behind the parity gate ----------------------------------------------------
FROM torch AS export
ARG WEIGHTS=openai
ARG PROFILE=exact
ARG TOWERS=image,text
ARG MODEL=ViT-B/32
COPY handler/ handler/
COPY export/ export/
# The patterns make these files optional. Where OpenAI's weights lie in the context, in either file (that of
# ViT-L/14@336px is called ViT-L-14-336px.pt), nothing is downloaded; checkpoint/ holds weights of one's own.
COPY requirements-torch.txt ViT-*.p[t] pytorch_model.bi[n] model.safetensor[s] ./
COPY requirements-torch.txt checkpoin[t] checkpoint/
# A mirror of OpenAI's weights; the activation of weights that do not tell it; a mirror of Hugging Face, 1 to do without
# it, and a token for it, which no stage after this one holds. A builder with secrets takes that as the secret hf_token.
ARG WEIGHTS_URL
ARG ACTIVATION
ARG HF_ENDPOINT
ARG HF_HUB_OFFLINE
ARG HF_TOKEN
RUN checkpoint="$(echo "$MODEL" | tr '/@' '--').pt"; \
    case "$PROFILE" in \
        exact) precision=fp32; kind=onnx ;; \
        fast)  precision=int8; kind=int8.onnx ;; \
        *)     echo "PROFILE is exact or fast, not '$PROFILE'" >&2; exit 2 ;; \
    esac; \
    case "$WEIGHTS $MODEL" in \
        "openai hf:"*) echo "WEIGHTS=custom belongs to MODEL=$MODEL" >&2; exit 2 ;; \
        "openai "*|"custom hf:"*) source= ;; \
        "custom "*)    source="--checkpoint checkpoint"; \
                       if [ -f "$checkpoint" ]; then source="--checkpoint $checkpoint"; fi ;; \
        "synthetic "*) source=--synthetic ;; \
        *)             echo "WEIGHTS is openai, custom or synthetic, not '$WEIGHTS'" >&2; exit 2 ;; \
    esac; \
    if [ -f /run/secrets/hf_token ]; then HF_TOKEN="$(cat /run/secrets/hf_token)"; export HF_TOKEN; fi; \
    if [ -z "$HF_ENDPOINT" ]; then unset HF_ENDPOINT; fi; \
    python -m export --out /model --model "$MODEL" $source --precision $precision --towers $TOWERS \
        ${ACTIVATION:+--activation $ACTIVATION} || exit 1; \
    rm -rf ~/.cache/clip ~/.cache/huggingface && chmod -R a+rX /model \
    # What the function needs of it: one precision's weights, and none of torch's.
    && mkdir /function && cd /model && for file in model.json vocabulary.json \
        visual.$kind visual.$kind.data text.$kind text.$kind.data; do \
        if [ -f $file ]; then cp -l $file /function/; fi; \
    done

# --- target `server`: uvicorn and the torch engine, on CUDA where there is one ----------------------
FROM torch AS server
ARG WEIGHTS=openai
ARG MODEL=ViT-B/32
LABEL clip.weights=${WEIGHTS} clip.model=${MODEL}
COPY --from=export /model/ model/
# Not from `packages`: what another Python compiled this one would ignore, and compile at every start.
COPY handler/ handler/
RUN python -m compileall -q --invalidation-mode unchecked-hash handler && chmod -R a+rX handler
ENV CLIP_ENGINE=torch NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 3000
USER 993:990
ENTRYPOINT []
CMD ["python", "-m", "uvicorn", "handler.main:app", "--no-access-log", "--host", "0.0.0.0", "--port", "3000"]

# --- the function -----------------------------------------------------------------------------------
# No USER: Lambda runs every image as its own unprivileged user, and `sam local` refuses another.
FROM ${BASE_IMAGE} AS lambda
ARG WEIGHTS=openai
ARG PROFILE=exact
ARG TOWERS=image,text
ARG MODEL=ViT-B/32
LABEL clip.weights=${WEIGHTS} clip.profile=${PROFILE} clip.towers=${TOWERS} clip.model=${MODEL}
# On a base image that is not AWS's own, Lambda takes a snapshot only of who says that it needs no hooks.
LABEL com.amazonaws.lambda.feature.snapstart=Allow
# The image holds the weights of this profile and of these towers only.
ENV CLIP_PROFILE=${PROFILE} CLIP_TOWERS=${TOWERS}
COPY --from=packages /packages/ ./
COPY --from=export /function/ model/
COPY --from=packages /code/ ./
CMD ["handler.main.handler"]
