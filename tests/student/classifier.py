import torch

from llama import load_pretrained


class LlamaEmbeddingClassifier(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_labels = config.num_labels
        self.llama = load_pretrained(config.pretrained_model_path)
        for parameter in self.llama.parameters():
            parameter.requires_grad = config.option == "finetune"
        self.dropout = torch.nn.Dropout(config.hidden_dropout_prob)
        self.classifier_head = torch.nn.Linear(self.llama.config.dim, self.num_labels)

    def forward(self, input_ids):
        _, hidden = self.llama(input_ids)
        logits = self.classifier_head(self.dropout(hidden[:, -1, :]))
        return torch.log_softmax(logits, dim=-1)
